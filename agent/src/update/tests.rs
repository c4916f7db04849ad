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

#[test]
fn what_is_held_back_at_a_lost_base_is_not_removed() {
    let held = set(7, [config("a", "2", true), config("b", "2", false)]);
    let lost = Record {
        lost: true,
        ..Record::default()
    };
    let updates = Updates::new(Policy::default(), lost);
    assert_eq!(updates.aim(&held, at(DAY)), forward(&held, false));
    // On a device that never had any, it stays away.
    let rest = set(7, [config("b", "2", false)]);
    let updates = Updates::default();
    assert_eq!(updates.aim(&held, at(DAY)), forward(&rest, false));
}

#[test]
fn before_a_set_was_good_the_base_is_what_was_begun_last() {
    let mut updates = nightly();
    updates.policy.deadline = Some(Duration::from_mins(1));
    assert!(updates.is_first());
    assert!(updates.began(&one(1)));
    assert!(!updates.is_first() && !updates.is_under_way(one(1).held()));
    assert!(matches!(updates.aim(&one(2), at(DAY)), Aim::Stay { .. }));
    assert_eq!(updates.aim(&one(2), at(NIGHT)), forward(&one(2), true));
    assert!(updates.began(&one(2)));
    assert!(updates.is_under_way(one(2).held()), "its hooks run");
    let start = Instant::now();
    assert!(!updates.is_overdue(one(2).held(), start));
    assert!(
        !updates.is_overdue(one(2).held(), start + Duration::from_hours(1)),
        "there is nothing to fall back to"
    );
    assert!(updates.succeeded(&one(2)), "now there is");
    assert!(!updates.record().way.unproven);
}

#[test]
fn what_was_begun_in_a_window_goes_on_while_the_next_one_waits() {
    let mut updates = nightly();
    updates.succeeded(&one(1));
    updates.began(&one(2));
    let Aim::Stay { base, .. } = updates.aim(&one(3), at(DAY)) else {
        panic!("it does not wait")
    };
    assert_eq!(base, one(2));
    updates.refuse(one(2).held(), "sick".into());
    let Aim::Stay { base, .. } = updates.aim(&one(3), at(DAY)) else {
        panic!("it does not wait")
    };
    assert_eq!(base, one(1));
}

#[test]
fn a_set_is_steady_when_it_was_healthy_without_a_break() {
    let mut updates = Updates::default();
    updates.succeeded(&one(1));
    updates.began(&one(2));
    let start = Instant::now();
    let later = |seconds| start + Duration::from_secs(seconds);
    let steady = Duration::from_secs(30);
    let mut rest = |seconds| {
        let rest = updates.unsteady(one(2).held(), later(seconds), steady);
        rest.map(|rest| rest.as_secs())
    };
    assert_eq!((rest(0), rest(10)), (Some(30), Some(20)));
    updates.excuse(later(20));
    let mut rest = |seconds| {
        updates
            .unsteady(one(2).held(), later(seconds), steady)
            .is_some()
    };
    assert!(rest(40), "it was out of sight in between");
    assert!(!rest(70));
    updates.is_overdue(one(2).held(), later(71));
    assert!(updates.unsteady(one(2).held(), later(72), steady).is_some());
    assert!(updates.unsteady(one(1).held(), later(72), steady).is_none());
}

#[test]
fn only_time_in_which_a_set_is_seen_to_be_sick_counts() {
    let policy = Policy {
        deadline: Some(Duration::from_mins(10)),
        ..Policy::default()
    };
    let mut updates = Updates::new(policy, Record::default());
    updates.succeeded(&one(1));
    updates.began(&one(2));
    let start = Instant::now();
    let later = |minutes| start + Duration::from_mins(minutes);
    let held = one(2).held();
    assert!(!updates.is_overdue(held, later(0)));
    assert!(!updates.is_overdue(held, later(4)));
    updates.excuse(later(5));
    updates.excuse(later(60));
    assert!(
        !updates.is_overdue(held, later(60)),
        "an hour does not count"
    );
    assert!(!updates.is_overdue(held, later(64)));
    assert!(updates.is_overdue(held, later(65)), "five minutes and five");

    // What was counted is recorded now and then, and outlives a restart, which costs a twentieth.
    updates.began(&one(2));
    assert!(!updates.is_overdue(held, later(100)));
    assert!(!updates.count(later(100)));
    assert!(updates.count(later(109)));
    let record = updates.record().clone();
    assert_eq!(record.way.spent, 9 * 60_000);
    let mut updates = Updates::new(updates.policy.clone(), record);
    assert!(updates.resume());
    assert!(!updates.is_overdue(held, later(200)));
    let half = later(200) + Duration::from_secs(30);
    assert!(updates.is_overdue(held, half));
}

#[test]
fn what_became_good_just_before_a_power_cut_is_not_under_way() {
    let mut updates = Updates::default();
    updates.succeeded(&one(1));
    updates.began(&one(2));
    let way = updates.record().way.clone();
    updates.succeeded(&one(2));
    let mut record = updates.record().clone();
    record.way = way;
    let mut updates = Updates::new(Policy::default(), record);
    assert!(!updates.is_under_way(one(2).held()) && !updates.resume());
}
