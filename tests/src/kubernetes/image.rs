//! Images of the built programs, as tar files that containerd imports: no registry, no Docker.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::programs::run;

/// Packs an image with one program, the libraries that it is linked with, and nothing else.
pub fn of_program(name: &str, program: &Path, folder: &Path) -> PathBuf {
    pack_program(name, program, &[], folder)
}

/// The certificate authorities that the world trusts.
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// The same with certificate authorities, and more programs that it may run, which are linked with nothing.
pub fn of_programs(name: &str, program: &Path, more: &[&Path], folder: &Path) -> PathBuf {
    let root = folder.join(format!("{}-root", file_name(name)));
    copy(Path::new(AUTHORITIES), &root.join(AUTHORITIES.trim_start_matches('/')));
    pack_program(name, program, more, folder)
}

fn pack_program(name: &str, program: &Path, more: &[&Path], folder: &Path) -> PathBuf {
    let root = folder.join(format!("{}-root", file_name(name)));
    let inside =
        |program: &Path| root.join("usr/local/bin").join(program.file_name().expect("a program has a name"));
    let target = inside(program);
    copy(program, &target);
    for program in more {
        copy(program, &inside(program));
    }
    let libraries = Command::new("ldd").arg(program).output().expect("ldd is there");
    // A static program has none, which ldd calls a failure.
    for word in
        String::from_utf8_lossy(&libraries.stdout).split_whitespace().filter(|word| word.starts_with('/'))
    {
        copy(Path::new(word), &root.join(word.trim_start_matches('/')));
    }
    fs::create_dir_all(root.join("tmp")).expect("the folder is ours");
    let inside = format!("/usr/local/bin/{}", target.file_name().expect("it has one").to_string_lossy());
    pack(name, &root, &[&inside], folder)
}

/// Packs an image of the tools of a shell, and of the program that holds a pod's namespaces.
pub fn of_busybox(name: &str, entrypoint: &[&str], folder: &Path) -> PathBuf {
    let root = folder.join(format!("{}-root", file_name(name)));
    let busybox = run(Command::new("sh").args(["-c", "command -v busybox"]));
    copy(Path::new(busybox.trim()), &root.join("bin/busybox"));
    run(Command::new("chroot").arg(&root).args(["/bin/busybox", "--install", "-s", "/bin"]));
    fs::create_dir_all(root.join("tmp")).expect("the folder is ours");
    pack(name, &root, entrypoint, folder)
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to.parent().expect("a file is in a folder")).expect("the folder is ours");
    fs::copy(from, to).unwrap_or_else(|error| panic!("{}: {error}", from.display()));
}

/// Packs a root folder as an OCI image of one layer.
fn pack(name: &str, root: &Path, entrypoint: &[&str], folder: &Path) -> PathBuf {
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
        "config": { "Entrypoint": entrypoint, "Env": ["PATH=/usr/local/bin:/bin"], "User": "65532:65532" },
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

/// Stores a blob under its digest; returns that and its size.
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
