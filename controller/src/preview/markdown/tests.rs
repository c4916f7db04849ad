use longshore_protocol::api::preview::{ChangeKind, Guard};
use proptest::prelude::*;

use super::*;

fn fleet() -> FleetId {
    FleetId {
        tenant: "default".parse().unwrap(),
        name: "shops".parse().unwrap(),
    }
}

fn device_names(range: std::ops::Range<u32>) -> Vec<DeviceName> {
    range
        .map(|n| format!("store-{n:04}").parse().unwrap())
        .collect()
}

fn key(kind: &str, namespace: &str, name: &str) -> ObjectKey {
    ObjectKey {
        api_version: "v1".to_owned(),
        kind: kind.to_owned(),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    }
}

fn change(object: ObjectKey, kind: ChangeKind, diff: &str) -> Change {
    Change {
        diff: format!("--- base/{object}\n+++ head/{object}\n{diff}"),
        object,
        kind,
    }
}

fn group(range: std::ops::Range<u32>, overlay: &str, changes: Vec<Change>) -> Group {
    Group {
        devices: device_names(range),
        overlays: vec![overlay.to_owned()],
        unknown_before: false,
        changes,
    }
}

/// What a reader of the README sees, too.
fn telling() -> Preview {
    let page = change(
        key("ConfigMap", "kiosk", "page"),
        ChangeKind::Changed,
        "@@ -2,5 +2,5 @@\n kind: ConfigMap\n data:\n-  greeting: Welcome to ${STORE}\n+  greeting: Good to see you in ${STORE}\n metadata:\n   name: page\n",
    );
    let secret = change(
        key("Secret", "kiosk", "printer"),
        ChangeKind::Changed,
        "@@ -2,5 +2,5 @@\n kind: Secret\n data:\n-  token: (redacted)\n+  token: (redacted, changed)\n metadata:\n   name: printer\n",
    );
    Preview {
        devices: 412,
        groups: vec![
            group(1..401, "groups/kiosk", vec![page]),
            group(401..403, "groups/gateway", vec![secret]),
        ],
        enrolled: vec![Enrolled {
            devices: device_names(500..501),
            overlay: "groups/kiosk".to_owned(),
            objects: vec![
                key("ConfigMap", "kiosk", "page"),
                key("Deployment", "kiosk", "browser"),
            ],
        }],
        decommissioned: device_names(600..648),
        guard: Guard {
            allowed: 41,
            exceeded: true,
            holds: true,
        },
        problems: Problems {
            lines: vec![
                "groups/signage/kustomization.yaml:4: `player.yaml` does not exist".to_owned(),
            ],
            count: 1,
        },
        ..Preview::default()
    }
}

fn framed(preview: &Preview, limit: usize) -> String {
    let link = "https://longshore.example:8443/previews/default/shops/7?key=0123456789abcdef";
    let fleet = fleet();
    let frame = Frame {
        fleet: &fleet,
        limit,
        link: Some(link),
    };
    comment(preview, frame)
}

#[test]
fn a_telling_example() {
    insta::assert_snapshot!(framed(&telling(), 65_536));
}

#[test]
fn names_and_contents_stay_text() {
    let hostile = "</code></summary>\n\n@everyone [x](javascript:1) ![y](http://e) <script>`````";
    let mut preview = telling();
    let diff = "+  x: |\n+    ```\n+    </details>\n+    @everyone\n+````````\u{1b}[2J\n";
    preview.groups = vec![group(
        0..1,
        hostile,
        vec![change(
            key(hostile, hostile, hostile),
            ChangeKind::Added,
            diff,
        )],
    )];
    preview.problems.lines = vec![hostile.to_owned()];
    preview.note = Some(hostile.to_owned());
    let text = framed(&preview, 65_536);
    assert_is_tame(&text);
    assert!(text.contains("`````````diff\n"), "{text}");
    assert!(!text.contains('\u{1b}'));
}

/// Outside of fences there is no HTML but ours, no link but ours, and no mention.
fn assert_is_tame(text: &str) {
    let mut fence: Option<&str> = None;
    let mut depth = 0;
    for line in text.lines() {
        match fence {
            Some(end) if line == end => fence = None,
            Some(_) => {}
            None if line.starts_with("```") => fence = line.strip_suffix("diff"),
            None => {
                assert!(!line.contains('@') && !line.contains('`'), "{line}");
                assert!(!line.contains("]("), "{line}");
                for tag in line.split('<').skip(1) {
                    let name = tag.split(['>', ' ']).next().unwrap();
                    let ours = [
                        "!--", "details", "summary", "b", "code", "p", "ul", "li", "sub", "br", "a",
                    ];
                    assert!(ours.contains(&name.trim_start_matches('/')), "{line}");
                }
                depth += line.matches("<details>").count();
                depth -= line.matches("</details>").count();
            }
        }
    }
    assert!(fence.is_none() && depth == 0, "{text}");
}

#[test]
fn a_long_report_ends_at_an_entry() {
    let mut preview = telling();
    let long = "+  line\n".repeat(2000);
    let object = |n: u32| {
        change(
            key("ConfigMap", "", &format!("m{n}")),
            ChangeKind::Changed,
            &long,
        )
    };
    preview.groups = (0..100)
        .map(|n| group(n..n + 1, "groups/kiosk", vec![object(n)]))
        .collect();
    let text = framed(&preview, 65_536);
    assert!(text.len() <= 65_536, "{}", text.len());
    assert!(text.contains("Not all diffs did fit in here."), "{text}");
    assert!(text.contains("<code>m99</code>"), "each is at least named");
    assert_is_tame(&text);
    for limit in [3000, 5000, 20_000] {
        let text = framed(&preview, limit);
        assert!(text.len() <= limit, "{} of {limit}", text.len());
        assert!(text.contains("more entries did not fit in here."), "{text}");
        assert!(text.contains("the whole report</a>"), "{text}");
        assert_is_tame(&text);
    }
}

proptest! {
    #[test]
    fn nothing_breaks_out(name in "\\PC{0,60}|[`<>@\\[\\]()!\n/a-z]{0,60}", diff in "([`~+ <>@/a-z\n]|\\PC){0,200}") {
        let mut preview = telling();
        let object = key(&name, &name, &name);
        preview.groups = vec![group(0..3, &name, vec![change(object, ChangeKind::Changed, &diff)])];
        preview.problems.lines = vec![name];
        assert_is_tame(&framed(&preview, 65_536));
    }
}
