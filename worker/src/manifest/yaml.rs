//! YAML text into JSON values that remember their lines. JSON is YAML too, so .json files come this way as well.
//!
//! Aliases are expanded within a budget, duplicate keys and foreign tags are refused, and nothing here recurses
//! deeper than `DEPTH_MAX`.

use std::collections::HashMap;

use litejoin_crds::path;
use saphyr_parser::{Event, Marker, Parser, ScalarStyle, Span, StrInput, Tag};
use serde_json::{Map, Value};

use super::scalar;

/// Values of one file at most, those that aliases repeat included.
const NODES_MAX: usize = 500_000;
/// Bytes of all paths of one file at most: long keys deep in one another would repeat in each path below them.
const PATH_BYTES_MAX: usize = 64 << 20;
/// How deep objects and lists may be in one another.
const DEPTH_MAX: usize = 64;

/// Where something is in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TextPosition {
    /// Counted from 1.
    pub(crate) line: usize,
    /// In characters, counted from 1.
    pub(crate) column: usize,
}

/// Where the fields of a document are.
#[derive(Debug)]
pub(crate) struct Positions {
    start: TextPosition,
    /// By path: the key of a field, the first character of an item.
    fields: HashMap<String, TextPosition>,
    /// By path: the first line of a text, and whether the lines that follow are those of the file.
    texts: HashMap<String, (TextPosition, bool)>,
}

impl Positions {
    /// The positions of what is below a path, as if it were a document of its own.
    pub(crate) fn below(&self, path: &str) -> Self {
        let below = |at: &str| Some(at.strip_prefix(path)?.strip_prefix('.')?.to_owned());
        Self {
            start: self.nearest(path),
            fields: self.fields.iter().filter_map(|(at, position)| Some((below(at)?, *position))).collect(),
            texts: self.texts.iter().filter_map(|(at, position)| Some((below(at)?, *position))).collect(),
        }
    }

    /// The position of a field, or of the nearest object or list around it that was written.
    pub(crate) fn nearest(&self, path: &str) -> TextPosition {
        let mut path = Some(path);
        while let Some(at) = path {
            if let Some(position) = self.fields.get(at) {
                return *position;
            }
            path = path::parent(at);
        }
        self.start
    }

    /// The position of a text's first line, and whether its further lines are those of the file.
    pub(crate) fn text(&self, path: &str) -> (TextPosition, bool) {
        self.texts.get(path).copied().unwrap_or_else(|| (self.nearest(path), false))
    }
}

/// Why a text is no YAML that we take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    /// Counted from 1.
    pub(crate) line: usize,
    /// The fault, and the remedy.
    pub(crate) message: String,
}

/// A document of a file.
#[derive(Debug)]
pub(crate) struct YamlDocument {
    pub(crate) value: Value,
    pub(crate) positions: Positions,
    /// What we don't take in a document of ours, though it is YAML: words and tags that others read differently, keys that
    /// are there twice. The value has some reading of it.
    pub(crate) fault: Option<Fault>,
}

/// Reads all documents of a text; those that hold nothing are left out.
pub(crate) fn parse(text: &str) -> Result<Vec<YamlDocument>, Fault> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut reader = YamlReader {
        parser: Parser::new_from_str(text),
        lines: text.lines().collect(),
        nodes: 0,
        path_bytes: 0,
    };
    let mut documents = Vec::new();
    loop {
        match reader.next()? {
            (Event::StreamEnd, _) => return Ok(documents),
            (Event::DocumentStart(_), _) => {
                let (event, span) = reader.next()?;
                let start = position(span.start);
                let mut document = DocumentReader {
                    reader: &mut reader,
                    anchors: HashMap::new(),
                    positions: Positions { start, fields: HashMap::new(), texts: HashMap::new() },
                    fault: None,
                };
                let value = document.node(event, span, "", 0)?;
                let DocumentReader { positions, fault, .. } = document;
                if !value.is_null() || fault.is_some() {
                    documents.push(YamlDocument { value, positions, fault });
                }
            }
            _ => {}
        }
    }
}

struct YamlReader<'a> {
    parser: Parser<'a, StrInput<'a>>,
    lines: Vec<&'a str>,
    /// Values read so far.
    nodes: usize,
    /// Bytes of the paths remembered so far.
    path_bytes: usize,
}

impl<'a> YamlReader<'a> {
    fn next(&mut self) -> Result<(Event<'a>, Span), Fault> {
        match self.parser.next_event() {
            Some(Ok(event)) => Ok(event),
            Some(Err(error)) => {
                let line = error.marker().line().max(1);
                Err(Fault { line, message: format!("is no YAML: {}", self.explain(line, error.info())) })
            }
            None => Ok((Event::StreamEnd, Span::default())),
        }
    }

    /// The parser's message, with the likeliest cause where the line shows one.
    fn explain(&self, line: usize, info: &str) -> String {
        let text = self.lines.get(line - 1).copied().unwrap_or_default();
        if text.trim_start_matches(' ').starts_with('\t') {
            return format!("{info}; the line begins with a tab, indent with spaces");
        }
        info.to_owned()
    }

    /// Counts values against the budget.
    fn count(&mut self, nodes: usize, at: Marker) -> Result<(), Fault> {
        self.nodes += nodes;
        match self.nodes > NODES_MAX {
            true => Err(fault(
                at,
                format!("more than {NODES_MAX} values; aliases repeat what they name, write less"),
            )),
            false => Ok(()),
        }
    }
}

struct DocumentReader<'r, 'a> {
    reader: &'r mut YamlReader<'a>,
    /// The value of each anchor, and how many values it holds.
    anchors: HashMap<usize, (Value, usize)>,
    positions: Positions,
    /// See [`YamlDocument::fault`]; the first one.
    fault: Option<Fault>,
}

impl<'a> DocumentReader<'_, 'a> {
    /// Notes a fault, and goes on with another value.
    fn noted<T>(&mut self, outcome: Result<T, Fault>, otherwise: impl FnOnce() -> T) -> T {
        outcome.unwrap_or_else(|fault| {
            self.fault.get_or_insert(fault);
            otherwise()
        })
    }

    /// Reads the node that an event begins.
    fn node(&mut self, event: Event<'a>, span: Span, at: &str, depth: usize) -> Result<Value, Fault> {
        if depth > DEPTH_MAX {
            return Err(fault(span.start, format!("objects and lists are more than {DEPTH_MAX} deep")));
        }
        let before = self.reader.nodes;
        self.reader.count(1, span.start)?;
        let (value, anchor) = match event {
            Event::Alias(anchor) => {
                let Some((value, nodes)) = self.anchors.get(&anchor) else {
                    return Err(fault(
                        span.start,
                        "the alias names what is not complete yet; write the value out",
                    ));
                };
                let (value, nodes) = (value.clone(), *nodes);
                self.reader.count(nodes, span.start)?;
                (value, 0)
            }
            Event::Scalar(text, style, anchor, tag) => {
                self.text_position(at, &text, style, span);
                let value = scalar_value(&text, style, tag.as_deref(), span.start);
                (self.noted(value, || Value::String(text.into_owned())), anchor)
            }
            Event::SequenceStart(anchor, tag) => {
                self.noted(collection_tag(tag.as_deref(), "seq", span.start), || ());
                (self.list(at, depth)?, anchor)
            }
            Event::MappingStart(anchor, tag) => {
                self.noted(collection_tag(tag.as_deref(), "map", span.start), || ());
                (self.object(at, depth)?, anchor)
            }
            _ => return Err(fault(span.start, "is no YAML: a value is missing")),
        };
        if anchor > 0 {
            self.anchors.insert(anchor, (value.clone(), self.reader.nodes - before));
        }
        Ok(value)
    }

    fn list(&mut self, at: &str, depth: usize) -> Result<Value, Fault> {
        let mut items = Vec::new();
        loop {
            let (event, span) = self.reader.next()?;
            if event == Event::SequenceEnd {
                return Ok(Value::Array(items));
            }
            let below = path::item(at, items.len());
            self.remember(&below, span)?;
            items.push(self.node(event, span, &below, depth + 1)?);
        }
    }

    fn object(&mut self, at: &str, depth: usize) -> Result<Value, Fault> {
        let mut map = Map::new();
        loop {
            let (event, span) = self.reader.next()?;
            let name = match event {
                Event::MappingEnd => return Ok(Value::Object(map)),
                Event::Scalar(text, style, _, tag) => {
                    let name = key(&text, style, tag.as_deref(), span.start);
                    self.noted(name, || text.into_owned())
                }
                _ => {
                    return Err(fault(
                        span.start,
                        "a key is a text; objects, lists and aliases cannot be one",
                    ));
                }
            };
            let below = path::field(at, &name);
            if map.contains_key(&name) {
                let first = self.positions.nearest(&below).line;
                let message = format!("the key {name:?} stands in line {first} already; remove one");
                self.noted(Err(fault(span.start, message)), || ());
            }
            self.remember(&below, span)?;
            let (event, span) = self.reader.next()?;
            let value = self.node(event, span, &below, depth + 1)?;
            map.insert(name, value);
        }
    }

    /// Remembers where a field or item is.
    fn remember(&mut self, at: &str, span: Span) -> Result<(), Fault> {
        self.reader.path_bytes += at.len();
        if self.reader.path_bytes > PATH_BYTES_MAX {
            return Err(fault(span.start, "too many long keys deep in one another; write less"));
        }
        self.positions.fields.insert(at.to_owned(), position(span.start));
        Ok(())
    }

    /// Remembers where a text's lines are.
    fn text_position(&mut self, at: &str, text: &str, style: ScalarStyle, span: Span) {
        let entry = match style {
            ScalarStyle::Literal | ScalarStyle::Folded => {
                // The header's line is followed by the block's first.
                let header = self.header_line(span.start.line());
                let first = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
                let content = self.reader.lines[header.min(self.reader.lines.len())..].iter();
                let spaces = |line: &str| line.len() - line.trim_start_matches(' ').len();
                let written = content.copied().find(|line| !line.trim().is_empty()).map_or(0, spaces);
                let column = 1 + written - spaces(first).min(written);
                (TextPosition { line: header + 1, column }, true)
            }
            _ => (position(span.start), false),
        };
        self.positions.texts.insert(at.to_owned(), entry);
    }

    /// The line of a block's header (`|` or `>`), which its span starts in or right behind.
    fn header_line(&self, line: usize) -> usize {
        let is_header = |line: usize| {
            let text = self.reader.lines.get(line.wrapping_sub(1)).copied().unwrap_or_default();
            let text = text.split(" #").next().unwrap_or(text).trim_end();
            let head = text.trim_end_matches(|c: char| c.is_ascii_digit() || c == '-' || c == '+');
            head.ends_with(['|', '>'])
        };
        if is_header(line) { line } else { line.saturating_sub(1).max(1) }
    }
}

/// The value of a scalar by its style and tag.
fn scalar_value(text: &str, style: ScalarStyle, tag: Option<&Tag>, at: Marker) -> Result<Value, Fault> {
    let plain = |text: &str| scalar::plain(text).map_err(|message| fault(at, message));
    let Some(tag) = tag else {
        return match style {
            ScalarStyle::Plain => plain(text),
            _ => Ok(Value::String(text.to_owned())),
        };
    };
    if tag.handle.is_empty() && tag.suffix == "!" {
        return Ok(Value::String(text.to_owned()));
    }
    let wanted = if tag.is_yaml_core_schema() { tag.suffix.as_str() } else { "" };
    let value = match wanted {
        "str" => return Ok(Value::String(text.to_owned())),
        "int" | "float" | "bool" | "null" => plain(text)?,
        _ => return Err(foreign_tag(tag, at)),
    };
    let fits = match wanted {
        "int" => value.is_i64() || value.is_u64(),
        "float" => value.is_number(),
        "bool" => value.is_boolean(),
        _ => value.is_null(),
    };
    match fits {
        true => Ok(value),
        false => Err(fault(at, format!("{text:?} is not what its tag !!{wanted} says; remove the tag"))),
    }
}

/// The text of a key. Numbers and the like are keys by their text, as in JSON.
fn key(text: &str, style: ScalarStyle, tag: Option<&Tag>, at: Marker) -> Result<String, Fault> {
    scalar_value(text, style, tag, at)?;
    if text == "<<" && style == ScalarStyle::Plain {
        return Err(fault(at, "merge keys (<<) are not part of YAML 1.2; write the fields out"));
    }
    Ok(text.to_owned())
}

/// Refuses a tag on an object or list that is not its own.
fn collection_tag(tag: Option<&Tag>, own: &str, at: Marker) -> Result<(), Fault> {
    match tag {
        Some(tag) if !(tag.is_yaml_core_schema() && tag.suffix == own) => Err(foreign_tag(tag, at)),
        _ => Ok(()),
    }
}

fn foreign_tag(tag: &Tag, at: Marker) -> Fault {
    let written = format!("{}{}", tag.handle, tag.suffix);
    let name = written.trim_start_matches('!');
    fault(at, format!("the tag !{name} means nothing here; remove it, or write {name}: as a field"))
}

fn position(marker: Marker) -> TextPosition {
    TextPosition { line: marker.line(), column: marker.col() + 1 }
}

fn fault(at: Marker, message: impl Into<String>) -> Fault {
    Fault { line: at.line(), message: message.into() }
}
