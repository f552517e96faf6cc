//! When a CronJob runs: five fields, or a short form of them.

/// Words that stand for all five fields.
pub const SHORT_FORMS: [&str; 7] =
    ["@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly"];

/// The complaint about a text that is no schedule.
pub(crate) const SCHEDULE_MESSAGE: &str = "schedule has five fields, such as '0 4 * * *' for every day at four, or is one of @hourly, @daily, @weekly, @monthly";

/// Whether a text has the form of a schedule. Whether its fields are within their bounds, only Kubernetes judges.
pub fn is_schedule(text: &str) -> bool {
    let is_field = |field: &str| {
        !field.is_empty() && field.chars().all(|c| c.is_ascii_alphanumeric() || "*,/-".contains(c))
    };
    let fields: Vec<&str> = text.split(' ').collect();
    SHORT_FORMS.contains(&text) || (fields.len() == 5 && fields.into_iter().all(is_field))
}
