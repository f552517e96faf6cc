//! Which room may import which: a room is a module, with all that is below it, and stands on a floor. Imports go down
//! to lower floors, never up and never sideways, and no modules that stand side by side import each other in a circle.

use std::collections::{BTreeMap, BTreeSet};

use crate::{assert_none, source, tree};

/// The rooms below a module, from the ground up.
struct FloorPlan {
    /// The folder of the crate's source.
    source: &'static str,
    /// The module that the rooms stand in; empty for the crate itself.
    module: &'static str,
    floors: &'static [&'static [&'static str]],
}

/// The parts of the code whose floors are drawn.
const FLOOR_PLANS: [FloorPlan; 5] = [
    FloorPlan {
        source: "worker/src",
        module: "",
        floors: &[
            &["blocking", "clock", "credentials", "fault"],
            &["manifest", "status"],
            &["admin", "kafka", "outbound", "serve", "storage"],
            &["results"],
            &["dead_letters", "join", "reshard", "sink"],
            &["replication", "window"],
            &["delivery", "evaluator", "pipeline", "source"],
            &["audit"],
            &["control"],
            &["commands", "runtime"],
        ],
    },
    FloorPlan {
        source: "operator/src",
        module: "",
        floors: &[&["error", "leader", "metrics"], &["controller", "serve"]],
    },
    FloorPlan {
        source: "operator/src",
        module: "controller",
        floors: &[
            &["kinds", "names"],
            &["object", "slot"],
            &["reshard", "watch"],
            &["observe"],
            &["config_map"],
            &["validate"],
            &["build"],
            &["apply"],
            &["node_loss", "worker"],
            &["status"],
            &["publish"],
        ],
    },
    FloorPlan {
        source: "crds/src",
        module: "",
        floors: &[
            &[
                "address",
                "defaults",
                "document",
                "durability",
                "duration",
                "error",
                "kind",
                "names",
                "path",
                "pod",
                "quantity",
                "schedule",
                "worker_status",
            ],
            &["reshard"],
            &["status"],
            &["hash", "network_policy", "pod_monitor", "reference", "rules", "topic"],
            &["credentials", "join", "window"],
            &["replication", "serving"],
            &["sink", "source"],
            &["pipeline", "plan"],
            &["complaint", "crd", "part"],
            &["structure"],
            &["validate"],
            &["settle"],
        ],
    },
    FloorPlan {
        source: "crds/src",
        module: "validate",
        floors: &[
            &["complaints"],
            &["read", "scope"],
            &["gjson"],
            &["connections", "joins", "listeners", "names"],
            &["kafka", "topics", "windows"],
            &["settings", "sinks", "sources"],
        ],
    },
];

/// The crates whose modules are held free of circles.
const CRATES: [&str; 3] = ["crds/src", "operator/src", "worker/src"];

#[test]
fn rooms_import_only_what_is_below_them() {
    let mut complaints = Vec::new();
    for plan in &FLOOR_PLANS {
        let floor_of = |room: &str| plan.floors.iter().position(|floor| floor.contains(&room));
        let graph = Graph::read(plan.source);
        let rooms = graph.rooms_of(plan.module);
        for room in plan.floors.iter().flat_map(|floor| floor.iter()) {
            if !rooms.contains(*room) {
                complaints.push(format!(
                    "{}: room {room} is on a floor and does not exist; take it away",
                    plan.source
                ));
            }
        }
        for room in &rooms {
            if floor_of(room).is_none() {
                let file = graph.file_of(plan.module, room);
                complaints.push(format!(
                    "{file}:1: room {room} is on no floor; put it on one in tests/tidy/rooms.rs"
                ));
            }
        }
        for import in graph.imports_within(plan.module) {
            let (Some(from), Some(to)) = (floor_of(&import.from), floor_of(&import.to)) else { continue };
            if to >= from {
                let Import { file, line, from, to } = import;
                complaints.push(format!(
                    "{file}:{line}: room {from} imports {to}, which is not below it; hand the value in, or move what both \
                     need down"
                ));
            }
        }
    }
    assert_none(&complaints);
}

#[test]
fn no_modules_import_each_other_in_a_circle() {
    let mut complaints = Vec::new();
    for source in CRATES {
        let graph = Graph::read(source);
        for module in graph.parents() {
            let mut edges: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
            for Import { file, line, from, to } in graph.imports_within(&module) {
                edges.entry(from).or_default().entry(to).or_insert(format!("{file}:{line}"));
            }
            if let Some(circle) = circle(&edges) {
                let steps = circle.windows(2).map(|pair| {
                    let place = &edges[&pair[0]][&pair[1]];
                    format!("{place}: {} imports {}", pair[0], pair[1])
                });
                complaints.push(format!("a circle:\n  {}", steps.collect::<Vec<_>>().join("\n  ")));
            }
        }
    }
    assert_none(&complaints);
}

/// The modules of a crate, and what they import of each other.
struct Graph {
    /// By path without `crate::`, its file.
    modules: BTreeMap<String, String>,
    /// File, line, module that imports, module that is imported.
    imports: Vec<(String, usize, String, String)>,
}

/// An import between two rooms.
struct Import {
    file: String,
    line: usize,
    from: String,
    to: String,
}

impl Graph {
    /// Reads the code of a crate, tests aside.
    fn read(source: &str) -> Self {
        let prefix = format!("{source}/");
        let files = tree::rust_files()
            .into_iter()
            .filter(|file| file.starts_with(&prefix) && !crate::arrows::is_test(file));
        let modules: BTreeMap<String, String> = files
            .map(|file| (file[prefix.len()..].trim_end_matches(".rs").replace('/', "::"), file))
            .filter(|(module, _)| module != "main" && module != "lib")
            .collect();
        let mut graph = Self { modules, imports: Vec::new() };
        let mut imports = Vec::new();
        for (module, file) in &graph.modules {
            let code = source::code(&tree::text(file).expect("source is text"));
            for (line, path) in source::paths(source::without_tests(&code)) {
                if let Some(target) = graph.target(module, &path)
                    && target != *module
                {
                    imports.push((file.clone(), line, module.clone(), target));
                }
            }
        }
        graph.imports = imports;
        graph
    }

    /// The module that a path in another one leads into.
    fn target(&self, module: &str, path: &str) -> Option<String> {
        let mut at: Vec<&str> = module.split("::").collect();
        let mut steps = path.split("::").peekable();
        match *steps.peek()? {
            "crate" => {
                steps.next();
                at.clear();
            }
            "self" => drop(steps.next()),
            "super" => {
                while steps.next_if_eq(&"super").is_some() {
                    at.pop();
                }
            }
            first if self.modules.contains_key(&format!("{module}::{first}")) => {}
            _ => return None,
        }
        for step in steps {
            at.push(step);
            if !self.modules.contains_key(&at.join("::")) {
                at.pop();
                break;
            }
        }
        (!at.is_empty()).then(|| at.join("::"))
    }

    /// Modules that have others below them, and the crate itself.
    fn parents(&self) -> BTreeSet<String> {
        self.modules
            .keys()
            .map(|module| module.rsplit_once("::").map_or("", |(parent, _)| parent).to_owned())
            .collect()
    }

    /// The names right below a module.
    fn rooms_of(&self, module: &str) -> BTreeSet<String> {
        self.modules.keys().filter_map(|path| room(module, path)).map(str::to_owned).collect()
    }

    fn file_of(&self, module: &str, name: &str) -> &str {
        let path = if module.is_empty() { name.to_owned() } else { format!("{module}::{name}") };
        self.modules.get(&path).map_or("", String::as_str)
    }

    /// The imports between rooms right below a module.
    fn imports_within(&self, module: &str) -> impl Iterator<Item = Import> {
        self.imports.iter().filter_map(move |(file, line, from, to)| {
            let (from, to) = (room(module, from)?, room(module, to)?);
            let (from, to) = (from.to_owned(), to.to_owned());
            (from != to).then(|| Import { file: file.clone(), line: *line, from, to })
        })
    }
}

/// The room right below `module` that a path is in.
fn room<'p>(module: &str, path: &'p str) -> Option<&'p str> {
    let rest = if module.is_empty() { path } else { path.strip_prefix(module)?.strip_prefix("::")? };
    rest.split("::").next()
}

/// A way from a name back to itself, if there is one.
fn circle<T>(edges: &BTreeMap<String, BTreeMap<String, T>>) -> Option<Vec<String>> {
    fn walk<T>(
        at: &str,
        edges: &BTreeMap<String, BTreeMap<String, T>>,
        way: &mut Vec<String>,
        done: &mut BTreeSet<String>,
    ) -> Option<Vec<String>> {
        if let Some(start) = way.iter().position(|step| step == at) {
            let mut circle = way[start..].to_vec();
            circle.push(at.to_owned());
            return Some(circle);
        }
        if !done.insert(at.to_owned()) {
            return None;
        }
        way.push(at.to_owned());
        let found =
            edges.get(at).into_iter().flat_map(BTreeMap::keys).find_map(|next| walk(next, edges, way, done));
        way.pop();
        found
    }
    let mut done = BTreeSet::new();
    edges.keys().find_map(|start| walk(start, edges, &mut Vec::new(), &mut done))
}

#[test]
fn a_circle_is_found_and_a_ladder_is_none() {
    let edges = |pairs: &[(&str, &str)]| {
        let mut edges: BTreeMap<String, BTreeMap<String, ()>> = BTreeMap::new();
        for (from, to) in pairs {
            edges.entry((*from).to_owned()).or_default().insert((*to).to_owned(), ());
        }
        edges
    };
    assert_eq!(circle(&edges(&[("a", "b"), ("b", "c"), ("a", "c")])), None);
    let found = circle(&edges(&[("a", "b"), ("b", "c"), ("c", "d"), ("d", "b")]));
    assert_eq!(found.map(|circle| circle.join(" ")).as_deref(), Some("b c d b"));
}
