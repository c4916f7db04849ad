//! What a reviewer reads, and what a hostile device makes of it.

use std::collections::BTreeMap;

use longshore_protocol::{
    DeviceId, Digest, TokenId,
    api::{Approval, DeviceState},
};
use proptest::prelude::*;

use super::*;
use crate::store::fleets::FleetId;

fn fleet() -> FleetId {
    FleetId {
        tenant: "default".parse().unwrap(),
        name: "shops".parse().unwrap(),
    }
}

fn token(label: &str) -> Token {
    Token {
        id: TokenId::from_random([1; 16]),
        fleet: fleet(),
        label: label.to_owned(),
        approval: Approval::Manual,
        uses: 1,
        max_uses: None,
        expires_at: None,
        revoked: false,
        overlay: Some("groups/kiosk".to_owned()),
        labels: BTreeMap::new(),
        created_at: 0,
    }
}

fn device(n: u32, facts: &[(&str, &str)]) -> Device {
    let mut random = [7; 16];
    random[..4].copy_from_slice(&n.to_be_bytes());
    let texts = |of: &[(&str, &str)]| {
        of.iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    };
    Device {
        id: DeviceId::from_random(random),
        fleet: fleet(),
        name: format!("store-{n:04}").parse().unwrap(),
        public_key: Digest::of(&n.to_be_bytes()),
        state: DeviceState::Pending,
        state_reason: String::new(),
        token: TokenId::from_random([1; 16]),
        enrollment_branch: None,
        enrollment_commit: None,
        branch_pushed: false,
        folder_to_delete: false,
        labels: texts(&[("hardware", "rpi4"), ("site", "madrid")]),
        facts: texts(facts),
        conditions: Vec::new(),
        source_address: "192.0.2.7".to_owned(),
        created_at: 1_795_000_000_000 + u64::from(n) * 1000,
    }
}

fn text(devices: &[Device], token: &Token, limit: usize) -> PullRequestText {
    let devices: Vec<_> = devices.iter().map(|device| (device, token)).collect();
    pull_request_text(&fleet().name, &devices, "pull request", limit)
}

const FACTS: &[(&str, &str)] = &[
    ("agent", "0.1.0"),
    ("arch", "aarch64"),
    ("model", "Raspberry Pi 4 Model B"),
    ("os", "Debian GNU/Linux 13 (trixie)"),
];

#[test]
fn of_one_device() {
    let text = text(&[device(1, FACTS)], &token("warehouse 2026"), 65_536);
    assert_eq!(text.title, "Enroll store-0001");
    insta::assert_snapshot!("enrollment_pull_request", text.body);
}

#[test]
fn of_several_devices() {
    let devices = [device(1, FACTS), device(2, &[]), device(3, &FACTS[..1])];
    let text = text(&devices, &token("warehouse 2026"), 65_536);
    assert_eq!(text.title, "Enroll 3 devices");
    insta::assert_snapshot!("enrollment_pull_request_of_several", text.body);
}

#[test]
fn where_the_tracked_branch_refuses() {
    let token = Token {
        approval: Approval::Automatic,
        ..token("trusted")
    };
    let body = text(&[device(1, &[])], &token, 65_536).body;
    assert!(
        body.contains("does not take that from the controller"),
        "{body}"
    );
}

#[test]
fn thousands_fit() {
    let devices: Vec<_> = (1..=3000).map(|n| device(n, FACTS)).collect();
    for limit in [65_536, 32_768, 4000] {
        let body = text(&devices, &token("all"), limit).body;
        assert!(body.chars().count() <= limit, "{}", body.chars().count());
        assert!(body.contains("store-0001") && body.contains("more: see the changed files"));
        assert!(body.contains("**Merging approves"), "{body}");
    }
}

/// The lines of a text that are not in a code block.
fn outside(body: &str) -> String {
    let mut fence: Option<&str> = None;
    let mut rest = String::new();
    for line in body.lines() {
        match fence {
            Some(end) if line == end => fence = None,
            Some(_) => assert!(line.starts_with("  "), "a row starts a line: {line:?}"),
            None if line.starts_with("```") => fence = line.strip_suffix("text"),
            None => {
                rest.push_str(line);
                rest.push('\n');
            }
        }
    }
    assert!(fence.is_none(), "a block that does not end: {body}");
    rest
}

proptest! {
    /// Whatever a device or an operator writes stays in code blocks, and changes nothing around them.
    #[test]
    fn hostile_texts_stay_where_they_are(
        facts in prop::collection::btree_map(
            "[\\PC`~\\n<>@|\\[\\]#/\u{202e}\u{200b}]{0,40}", "[\\PC`~\\r\\n<>@|\\[\\]()!#/\u{2066}]{0,80}", 0..8,
        ),
        label in "[\\PC`\\n<@#]{0,40}",
        count in 1_u32..4,
    ) {
        let devices: Vec<_> = (1..=count)
            .map(|n| Device { facts: facts.clone(), ..device(n, &[]) })
            .collect();
        let hostile = text(&devices, &token(&label), 65_536);
        let calm: Vec<_> = (1..=count)
            .map(|n| device(n, if facts.is_empty() { &[] } else { &FACTS[..1] }))
            .collect();
        let calm = text(&calm, &token("calm"), 65_536);
        prop_assert_eq!(outside(&hostile.body), outside(&calm.body));
        prop_assert_eq!(&hostile.title, &calm.title);
        let unseen = |char: char| char != '\n' && !is_plain(char);
        prop_assert!(!hostile.body.chars().any(unseen), "{}", hostile.body);
    }
}

#[test]
fn a_fence_is_longer_than_what_it_holds() {
    let facts = [("a", "``` </details> @everyone"), ("b", "`````")];
    let body = text(&[device(1, &facts)], &token("![x](http://x)"), 65_536).body;
    assert!(body.contains("\n``````text\n"), "{body}");
    assert!(!outside(&body).contains('@'));
}
