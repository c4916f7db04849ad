use longshore_protocol::Generation;
use serde_json::json;

use super::*;

fn config(name: &str, text: &str, hold: bool) -> Object {
    let annotations = if hold {
        json!({HOLD: "enabled"})
    } else {
        json!({})
    };
    Object::from_value(&json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": name, "annotations": annotations}, "data": {"text": text}}))
    .unwrap()
}

fn set(generation: u64, objects: impl IntoIterator<Item = Object>) -> Arc<Holding> {
    let generation = Generation::from(generation);
    Arc::new(Holding::new(generation, "c0ffee".into(), objects).unwrap())
}

fn one(generation: u64) -> Arc<Holding> {
    set(generation, [config("a", &generation.to_string(), false)])
}

fn forward(holding: &Arc<Holding>, begins: bool) -> Aim {
    Aim::Forward {
        holding: holding.clone(),
        begins,
    }
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

const NIGHT: &str = "2026-11-21T02:30:00Z";
const DAY: &str = "2026-11-21T12:00:00Z";

fn nightly() -> Updates {
    let policy = Policy {
        windows: vec!["0 2 * * * UTC for 1h".parse().unwrap()],
        ..Policy::default()
    };
    Updates::new(policy, Record::default())
}

#[test]
fn the_first_set_waits_for_no_window() {
    let mut updates = nightly();
    assert_eq!(updates.aim(&one(1), at(DAY)), forward(&one(1), false));
    assert!(updates.succeeded(&one(1)));
    assert!(!updates.succeeded(&one(1)), "it is good already");
    // Its repair is no update either.
    assert_eq!(updates.aim(&one(1), at(DAY)), forward(&one(1), false));
}

#[test]
fn updates_begin_in_a_window_and_end_whenever_they_do() {
    let mut updates = nightly();
    updates.succeeded(&one(1));
    let opens = Some(at("2026-11-22T02:00:00Z"));
    let stay = Aim::Stay {
        base: one(1),
        why: Stay::Closed { opens },
    };
    assert_eq!(updates.aim(&one(2), at(DAY)), stay);
    assert_eq!(updates.aim(&one(2), at(NIGHT)), forward(&one(2), true));
    assert!(!updates.began(&one(2)));
    let mut updates = Updates::new(updates.policy.clone(), updates.record().clone());
    assert_eq!(
        updates.aim(&one(2), at(DAY)),
        forward(&one(2), false),
        "also after a restart"
    );
    assert!(
        matches!(updates.aim(&one(3), at(DAY)), Aim::Stay { .. }),
        "another update has not begun"
    );
    assert!(updates.succeeded(&one(2)));
}

#[test]
fn a_set_that_does_not_become_healthy_is_given_up_until_another_comes() {
    let policy = Policy {
        deadline: Some(Duration::from_mins(1)),
        ..Policy::default()
    };
    let mut updates = Updates::new(policy, Record::default());
    let start = Instant::now();
    let later = |seconds| start + Duration::from_secs(seconds);
    assert!(!updates.is_overdue(one(1).held(), start));
    assert!(
        !updates.is_overdue(one(1).held(), later(3600)),
        "there is nothing to fall back to"
    );
    updates.succeeded(&one(1));
    assert!(!updates.is_overdue(one(2).held(), later(10)));
    assert!(!updates.is_overdue(one(2).held(), later(69)));
    assert!(
        !updates.is_overdue(one(3).held(), later(70)),
        "each set has its own time"
    );
    assert!(updates.is_overdue(one(3).held(), later(130)));
    updates.refuse(one(3).held(), "0 of 1 ready".into());
    let mut updates = Updates::new(updates.policy.clone(), updates.record().clone());
    let Aim::Stay {
        base,
        why: Stay::Refused(refusal),
    } = updates.aim(&one(3), at(DAY))
    else {
        panic!("it is tried again");
    };
    assert_eq!((base, refusal.why.as_str()), (one(1), "0 of 1 ready"));
    assert_eq!(updates.aim(&one(4), at(DAY)), forward(&one(4), true));
    // The good one is never given up, whatever becomes of it later.
    updates.succeeded(&one(1));
    assert!(!updates.is_overdue(one(1).held(), later(0)));
    assert!(!updates.is_overdue(one(1).held(), later(9999)));
}

#[test]
fn objects_can_be_held_back() {
    let mut updates = Updates::default();
    let first = set(1, [config("a", "1", false), config("b", "1", false)]);
    updates.succeeded(&first);
    let second = set(
        2,
        [
            config("a", "2", true),
            config("b", "2", false),
            config("c", "2", true),
        ],
    );
    let expected = set(2, [config("a", "1", false), config("b", "2", false)]);
    assert_eq!(updates.aim(&second, at(DAY)), forward(&expected, true));
    assert_eq!(held_back(&second), ["v1/ConfigMap/a", "v1/ConfigMap/c"]);
    updates.succeeded(&expected);
    assert_eq!(
        updates.aim(&second, at(DAY)),
        forward(&expected, false),
        "the same each time"
    );
    let third = set(3, [config("a", "3", false)]);
    assert_eq!(updates.aim(&third, at(DAY)), forward(&third, true));
}
