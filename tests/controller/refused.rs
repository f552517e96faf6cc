//! A write that the cluster forbids is reported in the status, and done once the cluster allows it.

use k8s_openapi::api::admissionregistration::v1::{
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
};
use k8s_openapi::api::core::v1::Service;
use kube::api::{Api, DeleteParams, PostParams};
use litejoin_crds::kind::Kind;
use litejoin_tests::wait::until;
use serde_json::json;

use crate::settled::orders;
use crate::site::{ControllerSite, Ports, condition_of};

#[tokio::test]
async fn a_policy_that_forbids_what_is_built_is_told() {
    let site = ControllerSite::new().await;
    let name = format!("no-services-{}", site.namespace);
    let policy = json!({
        "metadata": {"name": name},
        "spec": {
            "matchConstraints": {
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": site.namespace}},
                "resourceRules": [
                    {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["services"]},
                ],
            },
            "validations": [{"expression": "false", "message": "ask the platform team for a Service"}],
        },
    });
    let binding =
        json!({"metadata": {"name": name}, "spec": {"policyName": name, "validationActions": ["Deny"]}});
    let policies: Api<ValidatingAdmissionPolicy> = Api::all(site.client.clone());
    let bindings: Api<ValidatingAdmissionPolicyBinding> = Api::all(site.client.clone());
    let policy = serde_json::from_value(policy).expect("it is a policy");
    policies.create(&PostParams::default(), &policy).await.expect("a policy can be made");
    let binding = serde_json::from_value(binding).expect("it is a binding");
    bindings.create(&PostParams::default(), &binding).await.expect("a binding can be made");
    let services: Api<Service> = site.api();
    let any: Service = serde_json::from_value(json!({
        "metadata": {"name": "any"}, "spec": {"ports": [{"port": 80}]},
    }))
    .expect("it is a Service");
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    until("the policy to be in force", async || services.create(&dry, &any).await.err()).await;

    let operator = site.operator();
    site.apply(&orders(&Ports::free())).await;
    site.wait_for(Kind::Pipeline, "orders", "Ready", "False", "ApplyFailed").await;
    let pipeline = site.ours(Kind::Pipeline).get("orders").await.expect("it is there");
    let message = condition_of(&pipeline, "Ready").expect("it is told")["message"].to_string();
    for part in
        ["could not apply Service ", "ask the platform team for a Service", "tried again within a minute"]
    {
        assert!(message.contains(part), "{part}: {message}");
    }
    site.wait_for(Kind::Pipeline, "orders", "Reconciling", "True", "ApplyFailed").await;

    bindings.delete(&name, &DeleteParams::default()).await.expect("it can go");
    policies.delete(&name, &DeleteParams::default()).await.expect("it can go");
    until("the Service", async || services.get_opt("orders").await.ok()?).await;
    until("another reason", async || {
        let pipeline = site.ours(Kind::Pipeline).get("orders").await.ok()?;
        (condition_of(&pipeline, "Ready")?["reason"] != "ApplyFailed").then_some(())
    })
    .await;
    operator.stop().await;
}
