//! What applying costs, and sets that define what they use.

use super::*;

#[tokio::test]
#[ignore = "needs a cluster: LONGSHORE_TEST_KUBECONFIG names its kubeconfig"]
async fn five_hundred_objects_cost_a_request_each_and_the_same_again_none() {
    let mut site = Real::start();
    let mut set = vec![site.namespace(), site.definition()];
    set.extend((0..100).map(|index| site.till(&format!("till-{index}"))));
    set.extend((0..398).map(|index| site.config_map(&format!("page-{index}"), "1")));
    let tills = site.kubectl.applies("tills");
    let pages = site.kubectl.applies("configmaps");
    let start = time::Instant::now();
    let changes = site.apply(&set).await.unwrap();
    println!("500 objects applied in {:?}", start.elapsed());
    assert_eq!(changes.written.len(), 500);
    assert_eq!(site.kubectl.applies("tills") - tills, 100);
    assert_eq!(site.kubectl.applies("configmaps") - pages, 398);

    let pages = site.kubectl.applies("configmaps");
    for _ in 0..3 {
        let start = time::Instant::now();
        assert!(site.pass(&set).await.unwrap().is_empty());
        println!("500 unchanged objects in {:?}", start.elapsed());
    }
    set[200] = site.config_map("page-98", "2");
    let changes = site.apply(&set).await.unwrap();
    let page = format!("ConfigMap {}/page-98", site.name);
    assert_eq!(changes.written, [page]);
    assert_eq!(site.text("page-98").unwrap(), "2");
    // Neither does another process write.
    site.restart();
    let start = time::Instant::now();
    assert!(site.pass(&set).await.unwrap().is_empty());
    println!(
        "500 unchanged objects, listed anew, in {:?}",
        start.elapsed()
    );
    assert_eq!(site.kubectl.applies("configmaps") - pages, 1);
    assert_eq!(site.kubectl.applies("tills") - tills, 100);
}

#[tokio::test]
#[ignore = "needs a cluster: LONGSHORE_TEST_KUBECONFIG names its kubeconfig"]
async fn a_set_may_define_what_it_uses() {
    let mut site = Real::start();
    let set = [
        site.till("one"),
        site.config_map("page", "1"),
        site.definition(),
        site.namespace(),
    ];
    let changes = site.apply(&set).await.unwrap();
    assert_eq!(changes.written.len(), 4, "{changes:?}");
    let till = site.object(&site.tills(), "one").unwrap();
    assert_eq!(till["spec"]["drawers"], 1);
    assert_eq!(
        till["metadata"]["labels"]["longshore.dev/device"],
        site.device.as_str()
    );
    assert!(site.unhealthy().await.is_empty());
    // A further version of the kind, and an object of it, in one set.
    let mut definition = site.definition();
    let mut version = definition["spec"]["versions"][0].clone();
    version["name"] = "v2".into();
    version["storage"] = false.into();
    definition["spec"]["versions"] = json!([definition["spec"]["versions"][0], version]);
    let mut till = site.till("one");
    till["apiVersion"] = format!("{}/v2", site.group()).into();
    till["spec"]["drawers"] = 2.into();
    let mut second = till.clone();
    second["metadata"]["name"] = "two".into();
    let set = [
        till,
        second,
        site.config_map("page", "1"),
        definition,
        site.namespace(),
    ];
    let uid = |site: &Real| site.object(&site.tills(), "one").unwrap()["metadata"]["uid"].clone();
    let before = uid(&site);
    site.apply(&set).await.unwrap();
    assert_eq!(uid(&site), before);
    assert_eq!(site.names(&site.tills()), ["one", "two"]);
    site.pass_until("nothing is left to do", &set, |_, passed| {
        passed.as_ref().is_ok_and(Changes::is_empty)
    })
    .await
    .unwrap();
}

#[tokio::test]
#[ignore = "needs a cluster: LONGSHORE_TEST_KUBECONFIG names its kubeconfig"]
async fn one_failing_object_stops_no_other() {
    let mut site = Real::start();
    let mut broken = site.workload("Deployment", "broken", "web:1");
    broken["spec"].as_object_mut().unwrap().remove("selector");
    let mut misspelled = site.workload("Deployment", "misspelled", "web:1");
    misspelled["spec"]["replicaz"] = 3.into();
    let mut lost = site.config_map("lost", "1");
    lost["metadata"]["namespace"] = format!("{}-nowhere", site.name).into();
    let unknown = site.till("one");
    let set = [
        broken,
        misspelled,
        lost,
        unknown,
        site.namespace(),
        site.config_map("page", "1"),
    ];
    let passed = site.apply(&set).await;
    let (reason, message) = failure(&passed);
    assert_eq!(reason, "ObjectsFailed");
    let words = [
        "4 objects are not applied",
        "spec.selector: Required value",
        "replicaz",
        "not found",
        "no kind `Till`",
    ];
    let told = format!("{message} {passed:?}");
    for words in words {
        assert!(told.contains(words), "{words}: {told}");
    }
    assert_eq!(site.text("page").unwrap(), "1");
    // Somebody installs the kind.
    site.kubectl.apply_as("helm", &site.definition(), false);
    let set = [
        site.namespace(),
        site.config_map("page", "1"),
        site.till("one"),
    ];
    site.generation += 1;
    site.pass_until("the kind is found", &set, |_, passed| passed.is_ok())
        .await
        .unwrap();
    assert_eq!(site.names(&site.tills()), ["one"]);
}
