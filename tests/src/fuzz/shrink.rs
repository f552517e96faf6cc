//! Takes away from a script what a mismatch does not need.

use super::run::{Mismatch, Sabotage};
use super::script::Script;

pub async fn shrink(script: &Script, _mismatch: &Mismatch, _sabotage: Option<Sabotage>) -> Script {
    script.clone()
}
