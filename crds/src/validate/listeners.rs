//! Checks addresses that the worker listens on: each must be an address, and no two may meet.

use crate::address::Address;
use crate::complaint::Reason;
use crate::plan::Place;
use crate::validate::complaints::Complaints;
use crate::validate::read::Contents;

/// A listener: the part of the spec that it is of, and its address.
struct Listener {
    what: String,
    address: Address,
}

/// Checks the addresses of sources, sinks and admin.
pub(crate) fn check(contents: &Contents, complaints: &mut Complaints) {
    let mut written: Vec<(String, Place, &str)> = Vec::new();
    if let Some(pipeline) = &contents.pipeline {
        let place = Place { document: pipeline.document, path: "spec.admin.addr".to_owned() };
        written.push(("spec.admin".to_owned(), place, &pipeline.spec.admin.addr));
    }
    for named in &contents.sources {
        if let Some(http) = &named.body.http {
            let path = format!("{}.http.addr", named.place.path);
            let place = Place { document: named.place.document, path };
            written.push((format!("source {:?}", named.name), place, &http.addr));
        }
    }
    for named in &contents.sinks {
        if let Some(sse) = &named.body.sse {
            let path = format!("{}.sse.addr", named.place.path);
            let place = Place { document: named.place.document, path };
            written.push((format!("sink {:?}", named.name), place, &sse.addr));
        }
    }
    let mut listeners: Vec<Listener> = Vec::new();
    for (what, place, addr) in written {
        match Address::parse(addr) {
            Err(message) => complaints.error(&place, "", Reason::InvalidAddress, message),
            Ok(address) => {
                if let Some(other) = listeners.iter().find(|other| other.address.meets(&address)) {
                    let message = format!(
                        "{what} and {} both listen on port {}; give one another port",
                        other.what, address.port
                    );
                    complaints.error(&place, "", Reason::DuplicateAddress, message);
                }
                listeners.push(Listener { what, address });
            }
        }
    }
}
