//! What can be read at one sitting: functions of up to 80 lines, files of up to 600.

use crate::{assert_none, source, tree};

/// Lines that a function may have, from `fn` to its closing brace.
const FUNCTION_LINES_MAX: usize = 80;

/// Lines that a file may have.
const FILE_LINES_MAX: usize = 600;

/// Functions that are longer, by file and name, and why.
const LONG_FUNCTIONS: [(&str, &str, &str); 0] = [];

/// Files that are longer, and why.
const LONG_FILES: [(&str, &str); 0] = [];

#[test]
fn functions_are_short() {
    let mut complaints = Vec::new();
    let mut excused = vec![false; LONG_FUNCTIONS.len()];
    for file in tree::rust_files() {
        let code = source::code(&tree::text(&file).expect("source is text"));
        for Function { line, name, lines } in functions(&code) {
            if lines <= FUNCTION_LINES_MAX {
                continue;
            }
            let excuse = LONG_FUNCTIONS.iter().position(|(of, long, _)| *of == file && *long == name);
            match excuse {
                Some(index) => excused[index] = true,
                None => complaints.push(format!(
                    "{file}:{line}: function {name} has {lines} lines, at most {FUNCTION_LINES_MAX} are read well; part it"
                )),
            }
        }
    }
    for ((file, name, _), _) in LONG_FUNCTIONS.iter().zip(&excused).filter(|(_, excused)| !**excused) {
        complaints
            .push(format!("{file}: {name} is excused in tests/tidy/size.rs and is not long; take that away"));
    }
    assert_none(&complaints);
}

#[test]
fn files_are_short() {
    let mut complaints = Vec::new();
    for file in tree::rust_files() {
        let lines = tree::text(&file).expect("source is text").lines().count();
        if lines > FILE_LINES_MAX && !LONG_FILES.iter().any(|(long, _)| *long == file) {
            complaints.push(format!(
                "{file}:1: the file has {lines} lines, at most {FILE_LINES_MAX} are read well; part it by its nouns"
            ));
        }
    }
    assert_none(&complaints);
}

/// A function of some code.
#[derive(Debug, PartialEq)]
struct Function<'c> {
    /// From 1.
    line: usize,
    name: &'c str,
    lines: usize,
}

/// The functions that the code has, each from the line of its `fn` to that of its closing brace.
fn functions(code: &str) -> Vec<Function<'_>> {
    let lines: Vec<&str> = code.lines().collect();
    let mut found = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let Some(name) = function_name(line) else { continue };
        let (mut depth, mut brackets) = (0_usize, 0_usize);
        let end = lines[start..].iter().position(|line| {
            for letter in line.chars() {
                match letter {
                    '{' => depth += 1,
                    '}' if depth == 1 => return true,
                    '}' => depth = depth.saturating_sub(1),
                    '(' | '[' => brackets += 1,
                    ')' | ']' => brackets = brackets.saturating_sub(1),
                    // A function without a body.
                    ';' if depth == 0 && brackets == 0 => return true,
                    _ => {}
                }
            }
            false
        });
        found.push(Function { line: start + 1, name, lines: end.unwrap_or(0) + 1 });
    }
    found
}

/// The name of the function that a line declares.
fn function_name(line: &str) -> Option<&str> {
    let (before, behind) = line.split_once("fn ")?;
    let is_declaration = before.split(|letter: char| !source::is_word(letter)).all(|word| {
        ["", "pub", "crate", "super", "in", "async", "const", "unsafe", "extern"].contains(&word)
    });
    let end = behind.find(|letter| !source::is_word(letter)).unwrap_or(behind.len());
    (is_declaration && end > 0).then(|| &behind[..end])
}

#[test]
fn functions_are_measured() {
    let code = "impl A {\n    pub(crate) async fn a(\n        b: [u8; 2],\n    ) -> C {\n        if d { e }\n    }\n}\ntrait F { }\nfn g() {}\n";
    let measured = [Function { line: 2, name: "a", lines: 5 }, Function { line: 9, name: "g", lines: 1 }];
    assert_eq!(functions(code), measured);
}
