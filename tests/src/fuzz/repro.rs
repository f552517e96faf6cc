//! Writes a script as a golden case.

use super::script::Script;

pub fn golden_case(_script: &Script, _join: &super::script::Join) -> String {
    String::new()
}
