//! Images of the built programs, as tar files for containerd: no registry, no Docker. Each follows the last stage of
//! its Dockerfile.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::programs::run;

/// Packages whose libraries every Debian has, since dpkg and apt are linked with them.
const BASE_PACKAGES: [&str; 3] = ["libc6", "libgcc-s1", "zlib1g"];

/// The file of trusted certificate authorities, and its package.
const AUTHORITIES: (&str, &str) = ("/etc/ssl/certs/ca-certificates.crt", "ca-certificates");

/// Packs the last stage of a Dockerfile: its programs as built for this test (each in one of the folders `programs`),
/// the libraries that they are linked with, its user, folder and entry point.
///
/// # Panics
/// For an instruction that this function can't follow, and for a library that the image would lack.
pub fn of_dockerfile(name: &str, dockerfile: &Path, programs: &[&Path], folder: &Path) -> PathBuf {
    let text = fs::read_to_string(dockerfile).expect("a Dockerfile can be read").replace("\\\n", " ");
    let lines: Vec<&str> = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    let stage = lines.iter().rposition(|line| line.starts_with("FROM ")).expect("there is a stage");
    let root = folder.join(format!("{}-root", file_name(name)));
    let mut settings =
        json!({ "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"] });
    let (mut packages, mut libraries) = (BASE_PACKAGES.map(str::to_owned).to_vec(), BTreeSet::new());
    for line in &lines[stage + 1..] {
        let (instruction, rest) = line.split_once(' ').expect("an instruction has arguments");
        match instruction {
            "RUN" => packages.extend(installed(rest)),
            "COPY" => {
                let words: Vec<&str> = rest.split(' ').collect();
                let [stage, from, into] = words[..] else { panic!("{line}: can't be followed here") };
                assert!(stage.starts_with("--from="), "{line}: is not built");
                let program = Path::new(from).file_name().expect("a program has a name");
                let built =
                    programs.iter().map(|programs| programs.join(program)).find(|built| built.exists());
                let built = built.unwrap_or_else(|| panic!("{line}: is in none of {programs:?}"));
                copy(&built, &root.join(into.trim_start_matches('/')).join(program));
                libraries.extend(linked(&built));
            }
            "USER" => settings["User"] = json!(rest),
            "WORKDIR" => {
                fs::create_dir_all(root.join(rest.trim_start_matches('/'))).expect("the folder is ours");
                settings["WorkingDir"] = json!(rest);
            }
            "ENTRYPOINT" => settings["Entrypoint"] = serde_json::from_str(rest).expect("it is a list"),
            _ => panic!("{line}: can't be followed here"),
        }
    }
    let (authorities, package) = AUTHORITIES;
    if packages.iter().any(|installed| installed == package) {
        copy(Path::new(authorities), &root.join(authorities.trim_start_matches('/')));
    }
    for library in libraries {
        let pattern = format!("*/{}", library.file_name().expect("a file").to_string_lossy());
        let owner = run(Command::new("dpkg-query").args(["--search", &pattern]));
        let owners: Vec<&str> = owner.lines().filter_map(|line| line.split(':').next()).collect();
        let there = owners.iter().any(|owner| packages.iter().any(|package| package == owner));
        assert!(
            there,
            "{}: {} is of {owners:?}, none of {packages:?}",
            dockerfile.display(),
            library.display()
        );
        copy(&library, &root.join(library.strip_prefix("/").expect("a path of a library is whole")));
    }
    fs::create_dir_all(root.join("tmp")).expect("the folder is ours");
    pack(name, &root, &settings, folder)
}

/// Returns the packages that a command of a Dockerfile installs.
fn installed(command: &str) -> Vec<String> {
    let install = command.split("&&").find(|part| part.contains("apt-get install")).unwrap_or_default();
    let words = install.split_whitespace().skip_while(|word| *word != "install").skip(1);
    words.filter(|word| !word.starts_with('-')).map(str::to_owned).collect()
}

/// Returns the libraries that a program is linked with.
fn linked(program: &Path) -> Vec<PathBuf> {
    let libraries = Command::new("ldd").arg(program).output().expect("ldd is there");
    // ldd fails for a static program, which has no libraries.
    let text = String::from_utf8_lossy(&libraries.stdout).into_owned();
    text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect()
}

/// Packs an image with the tools of a shell and the pause program of pods.
pub fn of_busybox(name: &str, entrypoint: &[&str], folder: &Path) -> PathBuf {
    let root = folder.join(format!("{}-root", file_name(name)));
    let busybox = run(Command::new("sh").args(["-c", "command -v busybox"]));
    copy(Path::new(busybox.trim()), &root.join("bin/busybox"));
    run(Command::new("chroot").arg(&root).args(["/bin/busybox", "--install", "-s", "/bin"]));
    fs::create_dir_all(root.join("tmp")).expect("the folder is ours");
    let settings =
        json!({ "Entrypoint": entrypoint, "Env": ["PATH=/usr/local/bin:/bin"], "User": "65532:65532" });
    pack(name, &root, &settings, folder)
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to.parent().expect("a file is in a folder")).expect("the folder is ours");
    fs::copy(from, to).unwrap_or_else(|error| panic!("{}: {error}", from.display()));
}

/// Packs a root folder as an OCI image of one layer.
fn pack(name: &str, root: &Path, settings: &Value, folder: &Path) -> PathBuf {
    let oci = folder.join(format!("{}-oci", file_name(name)));
    let blobs = oci.join("blobs/sha256");
    fs::create_dir_all(&blobs).expect("the folder is ours");
    let layer = folder.join("layer.tar");
    tar(root, &layer);
    let layer = blob(&blobs, &fs::read(layer).expect("tar has made it"));
    let entry = |kind: &str, (digest, size): &(String, usize)| json!({ "mediaType": format!("application/vnd.oci.image.{kind}"), "digest": digest, "size": size });
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": settings,
        "rootfs": { "type": "layers", "diff_ids": [layer.0] },
    });
    let config = blob(&blobs, config.to_string().as_bytes());
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": entry("config.v1+json", &config),
        "layers": [entry("layer.v1.tar", &layer)],
    });
    let manifest = blob(&blobs, manifest.to_string().as_bytes());
    let mut entry: Value = entry("manifest.v1+json", &manifest);
    entry["annotations"] = json!({ "io.containerd.image.name": name });
    write(&oci.join("oci-layout"), &json!({ "imageLayoutVersion": "1.0.0" }));
    write(&oci.join("index.json"), &json!({ "schemaVersion": 2, "manifests": [entry] }));
    let image = folder.join(format!("{}.tar", file_name(name)));
    tar(&oci, &image);
    image
}

/// Stores a blob under its digest; returns the digest and the size.
fn blob(blobs: &Path, bytes: &[u8]) -> (String, usize) {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    fs::write(blobs.join(&hex), bytes).expect("the folder is ours");
    (format!("sha256:{hex}"), bytes.len())
}

fn write(path: &Path, value: &Value) {
    fs::write(path, value.to_string()).expect("the folder is ours");
}

fn tar(folder: &Path, into: &Path) {
    let owner = ["--owner=0", "--group=0", "--numeric-owner", "--sort=name"];
    run(Command::new("tar").args(owner).arg("-C").arg(folder).arg("-cf").arg(into).arg("."));
}

fn file_name(image: &str) -> String {
    image.replace(['/', ':'], "-")
}
