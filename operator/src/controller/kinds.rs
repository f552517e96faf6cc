//! Our kinds as the API names them. Documents are read as they are, without types: what a schema of another version
//! lets pass is then a complaint in a status, and never a list that can't be read.

use kube::api::ApiResource;
use litejoin_crds::kind::Kind;
use litejoin_crds::{API_VERSION, GROUP, VERSION};

/// What refers to a Pipeline.
pub(crate) const CHILDREN: [Kind; 4] = [Kind::Source, Kind::Join, Kind::Window, Kind::Sink];

/// The address of a kind.
pub(crate) fn resource(kind: Kind) -> ApiResource {
    ApiResource {
        group: GROUP.to_owned(),
        version: VERSION.to_owned(),
        api_version: API_VERSION.to_owned(),
        kind: kind.as_str().to_owned(),
        plural: kind.plural().to_owned(),
    }
}
