//! The generator makes what it is there for.

use super::*;
use crate::windows::model::Model;

/// What the rounds of a script come to by the models.
#[derive(Debug, Default)]
struct Reached {
    messages: usize,
    dead_letters: usize,
    finals: usize,
    updates_of_finals: usize,
    frozen_frames: usize,
    hazards: usize,
}

#[test]
fn scripts_reach_late_rows_closed_frames_and_hazards() {
    let mut reached = Reached::default();
    for seed in 1..=6 {
        let script = WindowScript::random(seed);
        let new = |window: &Definition| Model::new(window.clone(), script.start);
        let mut models: Vec<Model> = script.windows.iter().map(new).collect();
        for WindowRound { hazard, clock, messages } in &script.rounds {
            reached.messages += messages.len();
            reached.hazards += usize::from(*hazard != Hazard::Nothing);
            for (number, model) in models.iter_mut().enumerate() {
                if let Hazard::Reload { window, definition } = hazard
                    && *window == number
                {
                    model.redefine(definition);
                }
                let before = model.results().clone();
                model.tick(*clock);
                model.take(messages);
                let changed = before.iter().filter(|(key, result)| {
                    result.window["final"] == true && model.results().get(*key) != Some(*result)
                });
                reached.updates_of_finals += changed.count();
            }
        }
        for model in &models {
            reached.dead_letters += model.dead_letters().len();
            reached.finals += model.finals().len();
            reached.frozen_frames += model.log.frozen_count();
        }
    }
    let Reached { messages, dead_letters, finals, updates_of_finals, frozen_frames, hazards } = reached;
    let is_enough = messages > 600
        && dead_letters > 100
        && finals > 500
        && updates_of_finals > 25
        && frozen_frames > 250
        && hazards > 20;
    assert!(is_enough, "{reached:?}");
}

#[test]
fn a_seed_makes_one_script() {
    let text = |seed| format!("{:?}", WindowScript::random(seed));
    assert_eq!(text(7), text(7));
    assert_ne!(text(7), text(8));
}
