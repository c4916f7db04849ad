//! The runtime `command` with the script for `kubectl` that the manual has.

use std::os::unix::fs::PermissionsExt;

use longshore_agent::runtime::{
    Owner,
    command::{Command as Program, CommandSettings},
};

use super::*;

/// The manual's script, with the kubeconfig of these tests.
fn script(kubeconfig: &Path) -> String {
    let manual = include_str!("../../../../../docs/AGENT.md");
    let mut blocks = manual.split("```sh\n").skip(1);
    let script = blocks.find(|block| block.contains("/etc/longshore/apply.sh"));
    let script = script.unwrap().split("```").next().unwrap();
    let named = "KUBECONFIG=/etc/longshore/kubeconfig";
    assert!(script.contains(named), "{script}");
    script.replace(named, &format!("KUBECONFIG={}", kubeconfig.display()))
}

#[tokio::test]
#[ignore = "needs a cluster: LONGSHORE_TEST_KUBECONFIG names its kubeconfig"]
async fn the_manuals_script_applies_and_removes() {
    let site = Real::start();
    let path = site.dir.path().join("apply.sh");
    std::fs::write(&path, script(&site.kubectl.kubeconfig)).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    let settings = CommandSettings {
        line: vec![path.display().to_string()],
        timeout: PATIENCE,
        interval: None,
        folder: site.dir.path().join("command"),
    };
    let owner = Owner {
        id: site.device.clone(),
        name: "till".to_owned(),
    };
    let mut program = Program::new(settings, owner);
    let set = [
        site.namespace(),
        site.config_map("a", "1"),
        site.config_map("b", "1"),
        site.workload("Deployment", "web", "web:1"),
    ];
    program.apply(holding(1, &set)).await.unwrap();
    assert_eq!(site.names("configmaps"), ["a", "b"]);
    assert_eq!(site.names("deployments"), ["web"]);
    let set = [site.namespace(), site.config_map("a", "2")];
    program.apply(holding(2, &set)).await.unwrap();
    assert_eq!(site.text("a").unwrap(), "2");
    let end = time::Instant::now() + PATIENCE;
    while site.names("configmaps") != ["a"] || !site.names("deployments").is_empty() {
        assert!(time::Instant::now() < end, "what left the set stays");
        time::sleep(Duration::from_millis(100)).await;
    }
    program.clear().await.unwrap();
    let phase = ["get", "namespace", &site.name, "--ignore-not-found"];
    let phase = site.kubectl.run(&phase);
    assert!(phase.is_empty() || phase.contains("Terminating"), "{phase}");
}
