//! Takes away from a script what a failure does not need, by playing it without.

use super::schema::Message;
use super::script::{Fate, Join, Script, Step};

/// How often a script is played at most. A second or two each at first, soon much less.
const ATTEMPTS_MAX: usize = 300;

/// Returns a smaller script in which the join called `join` fails too. `fails` plays a script and says after which
/// step the join was wrong; in `script` it was `step`.
pub async fn shrink(
    script: Script,
    step: usize,
    join: &str,
    fails: impl AsyncFn(&Script) -> Option<usize>,
) -> Script {
    let mut search = Search { smallest: script.up_to(step), attempts: 0, fails };
    let simpler: [fn(&Script, &str) -> Script; 6] = [
        Script::of_one_join,
        Script::not_configured,
        Script::not_killed,
        Script::watched,
        Script::not_stopped,
        Script::in_one_shard,
    ];
    for simpler in simpler {
        let candidate = simpler(&search.smallest, join);
        search.attempt(candidate).await;
    }
    let mut length = search.smallest.pieces().len().div_ceil(2);
    while length > 0 {
        let mut from = 0;
        while from < search.smallest.pieces().len() {
            let mut pieces = search.smallest.pieces();
            let to = pieces.len().min(from + length);
            pieces.drain(from..to);
            let candidate = search.smallest.of_pieces(pieces);
            if !search.attempt(candidate).await {
                from += length;
            }
        }
        length = if length == 1 { 0 } else { length.div_ceil(2) };
    }
    search.smallest
}

struct Search<F> {
    smallest: Script,
    attempts: usize,
    fails: F,
}

impl<F: AsyncFn(&Script) -> Option<usize>> Search<F> {
    /// Takes the candidate if it fails too.
    async fn attempt(&mut self, candidate: Script) -> bool {
        self.attempts += 1;
        if self.attempts > ATTEMPTS_MAX {
            return false;
        }
        let step = (self.fails)(&candidate).await;
        if let Some(step) = step {
            self.smallest = candidate.up_to(step);
        }
        step.is_some()
    }
}

/// The least that can be taken out of a script: a message of a batch, or another step.
#[derive(Debug, Clone)]
enum Piece {
    Message { step: usize, fate: Fate, message: Message },
    Step(Step),
}

impl Script {
    fn up_to(&self, step: usize) -> Self {
        Self { steps: self.steps[..=step].to_vec(), ..self.clone() }
    }

    fn of_one_join(&self, join: &str) -> Self {
        let mut script = self.clone();
        script.joins = needed(&script.joins, join);
        for step in &mut script.steps {
            if let Step::Configure { joins, .. } = step {
                *joins = needed(joins, join);
            }
        }
        script
    }

    /// The last configuration from the start.
    fn not_configured(&self, _: &str) -> Self {
        let mut script = self.clone();
        script.steps.retain(|step| match step {
            Step::Configure { joins, .. } => {
                script.joins.clone_from(joins);
                false
            }
            _ => true,
        });
        script
    }

    fn not_killed(&self, _: &str) -> Self {
        let mut script = self.clone();
        script.steps.retain(|step| !matches!(step, Step::Kill));
        for step in &mut script.steps {
            if let Step::Batch { fate: fate @ Fate::Killed { .. }, .. } = step {
                *fate = Fate::Watched;
            }
        }
        script
    }

    /// Each batch in an epoch of its own.
    fn watched(&self, _: &str) -> Self {
        let mut script = self.clone();
        for step in &mut script.steps {
            if let Step::Batch { fate: fate @ Fate::Unwatched, .. } = step {
                *fate = Fate::Watched;
            }
        }
        script
    }

    fn not_stopped(&self, _: &str) -> Self {
        let mut script = self.clone();
        script.steps.retain(|step| !matches!(step, Step::Stop));
        script
    }

    fn in_one_shard(&self, _: &str) -> Self {
        Self { shard_count: 1, ..self.clone() }
    }

    fn pieces(&self) -> Vec<Piece> {
        let pieces = self.steps.iter().enumerate().flat_map(|(step, what)| match what {
            Step::Batch { messages, fate } => {
                let piece =
                    |message: &Message| Piece::Message { step, fate: *fate, message: message.clone() };
                messages.iter().map(piece).collect()
            }
            other => vec![Piece::Step(other.clone())],
        });
        pieces.collect()
    }

    fn of_pieces(&self, pieces: Vec<Piece>) -> Self {
        let mut steps = Vec::new();
        let mut last = None;
        for piece in pieces {
            match piece {
                Piece::Step(step) => {
                    steps.push(step);
                    last = None;
                }
                Piece::Message { step, fate, message } => match steps.last_mut() {
                    Some(Step::Batch { messages, .. }) if last == Some(step) => messages.push(message),
                    _ => {
                        steps.push(Step::Batch { messages: vec![message], fate });
                        last = Some(step);
                    }
                },
            }
        }
        Self { steps, ..self.clone() }
    }
}

/// The join of that name, and what it reads.
fn needed(joins: &[Join], name: &str) -> Vec<Join> {
    let mut names = vec![name.to_owned()];
    let mut found = Vec::new();
    while let Some(name) = names.pop() {
        if let Some(join) = joins.iter().find(|join| join.name == name) {
            names.extend(join.reads.clone());
            found.push(join.clone());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails once both of two messages were sent, in whatever steps and company, if there is the join.
    fn fails(script: &Script, wanted: &[&Message; 2], join: &str) -> Option<usize> {
        script.joins.iter().find(|present| present.name == join)?;
        let mut missing = wanted.to_vec();
        script.steps.iter().position(|step| {
            missing.retain(|wanted| !step.messages().contains(wanted));
            missing.is_empty()
        })
    }

    #[tokio::test]
    async fn only_what_is_needed_stays() {
        for seed in 1..20 {
            let script = Script::random(seed);
            let mut batches = script.steps.iter().filter_map(|step| step.messages().first());
            let wanted = [batches.nth(3).expect("a batch"), batches.nth(20).expect("a batch")];
            let join = &script.joins[0].name;
            let step = fails(&script, &wanted, join).expect("both are sent");
            let smaller =
                shrink(script.clone(), step, join, async |script: &Script| fails(script, &wanted, join))
                    .await;
            let pieces: Vec<Message> = smaller
                .pieces()
                .into_iter()
                .map(|piece| match piece {
                    Piece::Message { message, .. } => message,
                    Piece::Step(step) => panic!("seed {seed}: {step:?} is not needed"),
                })
                .collect();
            // The same message may come several times, so in the other order, or for both.
            let is_wanted = pieces.iter().all(|piece| wanted.contains(&piece));
            let is_all = wanted.iter().all(|wanted| pieces.contains(wanted));
            let is_once = pieces.len() == if wanted[0] == wanted[1] { 1 } else { 2 };
            assert!(is_wanted && is_all && is_once, "seed {seed}: {pieces:?} are not {wanted:?}");
            assert_eq!((smaller.joins.len(), smaller.shard_count), (1, 1), "seed {seed}");
        }
    }
}
