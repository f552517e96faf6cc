//! What names a Secret that isn't there follows as soon as it comes, and when it goes.

use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, DeleteParams};
use litejoin_crds::kind::Kind;

use crate::site::{Site, condition_of};

const DOCUMENTS: &str = r"
apiVersion: litejoin.io/v1alpha1
kind: Pipeline
metadata: {name: orders}
spec: {}
---
apiVersion: litejoin.io/v1alpha1
kind: Source
metadata: {name: theirs}
spec:
  pipelineRef: {name: orders}
  topic: theirs
  api: {url: http://a, keyPath: id, interval: 1m, auth: {bearer: {secretKeyRef: {name: door, key: token}}}}
";

#[tokio::test]
async fn a_missing_secret_is_noticed_when_it_comes() {
    let site = Site::new().await;
    let operator = site.operator();
    site.apply(DOCUMENTS).await;
    let told = async |message: &str| {
        site.wait_for(Kind::Source, "theirs", "ResolvedRefs", "False", "RefNotFound").await;
        let what = format!("{message:?} to be told");
        litejoin_tests::wait::until(&what, async || {
            let source = site.ours(Kind::Source).get("theirs").await.ok()?;
            (condition_of(&source, "ResolvedRefs")?["message"] == message).then_some(())
        })
        .await;
    };
    // Nothing but the Secret itself wakes the operator, which looks by itself every five minutes.
    told("spec: there is no Secret \"door\" in this namespace; create it").await;
    site.secret("door", &[("password", "hunter2")]).await;
    told("spec: the Secret \"door\" has no key \"token\"; add it").await;
    site.secret("door", &[("token", "hunter2")]).await;
    site.wait_for(Kind::Source, "theirs", "ResolvedRefs", "True", "ResolvedRefs").await;
    let secrets: Api<Secret> = site.api();
    secrets.delete("door", &DeleteParams::default()).await.expect("it is there");
    told("spec: there is no Secret \"door\" in this namespace; create it").await;
    operator.stop().await;
}
