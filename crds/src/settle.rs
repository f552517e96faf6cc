//! Which of the documents go into force where some are wrong. A part that is wrong holds up itself alone: its version of
//! before stays in force if there is one that fits the rest, and otherwise the rest runs without it. Settings of the
//! Pipeline that are wrong hold up everything, since every part depends on them.
//!
//! ```text
//! documents ─► judge ─► complaints about parts ─► their version of before ─► judge … ─► leave them out ─► judge … ─► fit
//!                    └► complaints about the Pipeline's settings ─► nothing goes into force
//! ```

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::complaint::{Complaint, Reason, Severity};
use crate::document::Document;
use crate::kind::Kind;
use crate::part::{self, parts};
use crate::path;
use crate::plan::{Place, Plan};
use crate::validate::validate_without;

/// Documents on their way into force.
#[derive(Debug)]
pub struct Candidate<'a> {
    documents: Vec<Document>,
    /// The documents that are in force.
    before: &'a [Document],
    left_out: BTreeSet<Place>,
    held_back: BTreeMap<Place, HeldBack>,
}

/// A part that does not go into force as it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldBack {
    /// The kind of the part.
    pub kind: Option<Kind>,
    /// The name of the part; empty if it has none.
    pub name: String,
    /// The root of its document, or its entry in the Pipeline.
    pub place: Place,
    /// What is wrong with it, in the order of the document.
    pub complaints: Vec<Complaint>,
    /// Whether its version of before runs on; otherwise the rest runs without it.
    pub runs_on: bool,
}

impl<'a> Candidate<'a> {
    /// Takes the documents as they are written; `before` are those in force, of which versions are taken.
    pub fn new(documents: Vec<Document>, before: &'a [Document]) -> Self {
        Self { documents, before, left_out: BTreeSet::new(), held_back: BTreeMap::new() }
    }

    /// The documents with versions of before in place. What is left out is still there, so that places stay what they
    /// are.
    pub fn documents(&self) -> &[Document] {
        &self.documents
    }

    /// The places of parts that are left out.
    pub fn left_out(&self) -> &BTreeSet<Place> {
        &self.left_out
    }

    /// Judges the documents as [`crate::validate`] does, without what is left out.
    pub fn validate(&self) -> Result<(Plan, Vec<Complaint>), Vec<Complaint>> {
        validate_without(&self.documents, &self.left_out)
    }

    /// Whether a part that is left out is at this place, or around it.
    pub fn is_left_out(&self, place: &Place) -> bool {
        self.left_out.contains(&self.part_at(place).unwrap_or_else(|| place.clone()))
    }

    /// Holds back the parts that are complained about. Returns whether there were any, after which the rest is to be
    /// judged anew; an error is the complaints about the Pipeline itself.
    pub fn hold_back(&mut self, complaints: Vec<Complaint>) -> Result<bool, Vec<Complaint>> {
        let errors = complaints.into_iter().filter(|complaint| complaint.severity == Severity::Error);
        let mut by_part: BTreeMap<Place, Vec<Complaint>> = BTreeMap::new();
        let mut own = Vec::new();
        for complaint in errors {
            match self.part_at(&complaint.place).filter(|_| complaint.reason != Reason::NoPipeline) {
                Some(place) => by_part.entry(place).or_default().push(complaint),
                None => own.push(complaint),
            }
        }
        if by_part.is_empty() {
            return if own.is_empty() { Ok(false) } else { Err(own) };
        }
        for (place, complaints) in by_part {
            self.hold(place, complaints);
        }
        Ok(true)
    }

    /// Returns the documents that go into force, and the parts that are held back in the order of the documents.
    pub fn finish(self) -> (Vec<Document>, Vec<HeldBack>) {
        let Self { documents, left_out, held_back, .. } = self;
        let mut settled = Vec::new();
        for (document, Document { mut value }) in documents.into_iter().enumerate() {
            let stays = |path: String| !left_out.contains(&Place { document, path });
            for list in Kind::CHILDREN.map(Kind::plural) {
                let Some(Value::Array(entries)) = value.pointer_mut(&format!("/spec/{list}")) else {
                    continue;
                };
                let written = std::mem::take(entries).into_iter().enumerate();
                let path = |index| path::item(&path::field("spec", list), index);
                entries.extend(written.filter(|(index, _)| stays(path(*index))).map(|(_, entry)| entry));
            }
            if stays(String::new()) {
                settled.push(Document { value });
            }
        }
        (settled, held_back.into_values().collect())
    }

    /// The place of the part that a field belongs to; `None` for one of the Pipeline's own.
    fn part_at(&self, place: &Place) -> Option<Place> {
        let Place { document, path } = place;
        let path = match self.documents.get(*document)?.value["kind"] == Kind::Pipeline.as_str() {
            true => part::entry_path(path)?,
            false => "",
        };
        Some(Place { document: *document, path: path.to_owned() })
    }

    /// Puts the version of before in place of a part; leaves the part out if there is none, or that was done before.
    fn hold(&mut self, place: Place, complaints: Vec<Complaint>) {
        let before = match self.held_back.contains_key(&place) {
            true => None,
            false => self.version_before(&place),
        };
        let runs_on = before.is_some();
        match before {
            Some(version) => self.put(&place, version),
            None => {
                self.left_out.insert(place.clone());
            }
        }
        if let Some(held) = self.held_back.get_mut(&place) {
            held.runs_on = false;
            return;
        }
        let part = parts(&self.documents).find(|part| part.place == place);
        let kind = part.as_ref().map(|part| part.kind);
        let name = part.map(|part| part.name.to_owned()).unwrap_or_default();
        self.held_back.insert(place.clone(), HeldBack { kind, name, place, complaints, runs_on });
    }

    /// The part at a place as it was before; `None` if it is new or was the same.
    fn version_before(&self, place: &Place) -> Option<Value> {
        let written = parts(&self.documents).find(|part| part.place == *place)?;
        let same = |part: &part::Part<'_>| (part.kind, part.name) == (written.kind, written.name);
        let before = parts(self.before).find(same)?.body();
        (!written.name.is_empty() && before != written.body()).then(|| written.with_body(before))
    }

    fn put(&mut self, place: &Place, version: Value) {
        let document = &mut self.documents[place.document].value;
        let pointer = match part::entry_path(&place.path) {
            Some(path) => format!("/{}", path.replace(['.', '['], "/").replace(']', "")),
            None => "/spec".to_owned(),
        };
        if let Some(part) = document.pointer_mut(&pointer) {
            *part = version;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use expect_test::{Expect, expect};

    fn documents(text: &str) -> Vec<Document> {
        text.split("---\n")
            .map(|text| Document { value: serde_yaml::from_str(text).expect("it is YAML") })
            .collect()
    }

    /// Settles the documents, and asserts what is held back and what goes into force.
    fn settles(written: &str, before: &str, held: Expect, in_force: Expect) {
        let (written, before) = (documents(written), documents(before));
        let mut candidate = Candidate::new(written, &before);
        loop {
            let complaints = candidate.validate().err().unwrap_or_default();
            if !candidate.hold_back(complaints).expect("the Pipeline itself is right") {
                break;
            }
        }
        candidate.validate().expect("the rest is valid");
        let (documents, held_back) = candidate.finish();
        let lines = held_back.iter().flat_map(|part| {
            let how = if part.runs_on { "runs on" } else { "is left out" };
            part.complaints.iter().map(move |complaint| {
                format!("{} {how}: {}: {}\n", part.name, complaint.place.path, complaint.message)
            })
        });
        held.assert_eq(&lines.collect::<String>());
        let parts = parts(&documents).map(|part| format!("{} {}\n", part.name, Value::Object(part.body())));
        in_force.assert_eq(&parts.collect::<String>());
    }

    const BEFORE: &str = "
apiVersion: litejoin.io/v1alpha1
kind: Pipeline
metadata: {name: orders}
spec:
  sinks:
    - {name: console, stdout: {}}
    - {name: live, sse: {addr: ':9100'}}
  joins:
    - {name: totals, query: SELECT 1, sinks: [console]}
";

    #[test]
    fn a_part_that_is_wrong_holds_up_itself_alone() {
        let written = BEFORE.replace("sinks: [console]", "sinks: [consloe]")
            + "
    - {name: more, query: SELECT 2, sinks: [live]}
---
apiVersion: litejoin.io/v1alpha1
kind: Join
metadata: {name: alone}
spec: {pipelineRef: {name: orders}, query: SELECT 3, sinks: [live]}
---
apiVersion: litejoin.io/v1alpha1
kind: Join
metadata: {name: wrong}
spec: {pipelineRef: {name: orders}, query: '', sinks: [live]}
";
        settles(
            &written,
            BEFORE,
            expect![[r#"
                totals runs on: spec.joins[0].sinks[0]: no sink is called "consloe"; did you mean "console"?
                wrong is left out: spec.query: got "", must not be empty
            "#]],
            expect![[r#"
                totals {"query":"SELECT 1","sinks":["console"]}
                more {"query":"SELECT 2","sinks":["live"]}
                console {"stdout":{}}
                live {"sse":{"addr":":9100"}}
                alone {"query":"SELECT 3","sinks":["live"]}
            "#]],
        );
    }

    #[test]
    fn who_needs_what_is_left_out_waits_for_it() {
        let written = BEFORE.replace("addr: ':9100'", "addr: 9100")
            + "
    - {name: more, query: SELECT 2, sinks: [live]}
";
        let before = BEFORE.replace("    - {name: live, sse: {addr: ':9100'}}\n", "");
        settles(
            &written,
            &before,
            expect![[r#"
            more is left out: spec.joins[1].sinks[0]: waits for the sink "live", which is wrong itself; put that right first
            live is left out: spec.sinks[1].sse.addr: got the number 9100, want a text; put it in quotes: "9100"
        "#]],
            expect![[r#"
            totals {"query":"SELECT 1","sinks":["console"]}
            console {"stdout":{}}
        "#]],
        );
    }

    #[test]
    fn of_two_with_one_name_the_first_goes_into_force() {
        let written = format!("{BEFORE}    - {{name: totals, query: SELECT 2, sinks: [live]}}\n");
        settles(
            &written,
            BEFORE,
            expect![[r#"
            totals is left out: spec.joins[1].name: two joins are called "totals"; topics, joins and windows are tables of one database, rename one
        "#]],
            expect![[r#"
            totals {"query":"SELECT 1","sinks":["console"]}
            console {"stdout":{}}
            live {"sse":{"addr":":9100"}}
        "#]],
        );
    }

    #[test]
    fn what_is_left_out_is_complained_about_once() {
        let elsewhere = BEFORE.replace("{name: orders}", "{name: orders, namespace: shop}")
            + "---
apiVersion: litejoin.io/v1alpha1
kind: Join
metadata: {name: alone, namespace: other}
spec: {pipelineRef: {name: orders}, query: SELECT 3, sinks: [live]}
";
        let mut candidate = Candidate::new(documents(&elsewhere), &[]);
        let complaints = candidate.validate().expect_err("it is in another namespace");
        assert_eq!(candidate.hold_back(complaints), Ok(true));
        candidate.validate().expect("the rest is valid without it");
    }

    #[test]
    fn settings_that_are_wrong_hold_up_everything() {
        let written = documents(&format!("{BEFORE}  storage: {{shardCount: 100}}\n"));
        let mut candidate = Candidate::new(written, &[]);
        let complaints = candidate.validate().expect_err("it is wrong");
        let own = candidate.hold_back(complaints).expect_err("it is the Pipeline's own");
        assert_eq!(own[0].place.path, "spec.storage.shardCount");
    }
}
