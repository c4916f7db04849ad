//! How what was applied fares, in one vocabulary for all runtimes.

use longshore_protocol::ObjectKey;

/// How an object fares. The words are those of the kstatus library, without the ones for deletion by others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Health {
    /// It is what it is meant to be.
    Current,
    /// It is on its way: pods start, a deletion waits for a finalizer.
    InProgress,
    /// It will not get there by itself.
    Failed,
}

/// How one object fares, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectHealth {
    /// Which object.
    pub object: ObjectKey,
    /// How it fares.
    pub health: Health,
    /// Why, for people; empty where there is nothing to say.
    pub message: String,
}

/// The health of a whole set: that of its worst object.
pub fn worst(objects: &[ObjectHealth]) -> Health {
    objects
        .iter()
        .map(|object| object.health)
        .max()
        .unwrap_or(Health::Current)
}

/// Which objects are not current, and why, in one line; the failed ones first, shortened where there are many.
pub fn summary(objects: &[ObjectHealth]) -> String {
    const SHOWN: usize = 3;
    let mut wrong: Vec<_> = objects
        .iter()
        .filter(|object| object.health != Health::Current)
        .collect();
    wrong.sort_by_key(|object| std::cmp::Reverse(object.health));
    let shown = wrong.iter().take(SHOWN).map(|object| {
        if object.message.is_empty() {
            object.object.to_string()
        } else {
            format!("{}: {}", object.object, object.message)
        }
    });
    let more = wrong.len().saturating_sub(SHOWN);
    let more = (more > 0).then(|| format!("and {more} more"));
    shown.chain(more).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(name: &str, health: Health, message: &str) -> ObjectHealth {
        ObjectHealth {
            object: ObjectKey {
                api_version: "v1".to_owned(),
                kind: "Pod".to_owned(),
                namespace: String::new(),
                name: name.to_owned(),
            },
            health,
            message: message.to_owned(),
        }
    }

    #[test]
    fn a_set_is_as_healthy_as_its_worst_object() {
        assert_eq!(worst(&[]), Health::Current);
        let objects = [
            object("a", Health::Current, ""),
            object("b", Health::InProgress, "0 of 1 ready"),
            object("c", Health::Failed, "image not found"),
        ];
        assert_eq!(worst(&objects), Health::Failed);
        assert_eq!(worst(&objects[..2]), Health::InProgress);
        let line = summary(&objects);
        assert!(
            line.find("image not found").unwrap() < line.find("0 of 1 ready").unwrap(),
            "{line}"
        );
        assert!(!line.contains("/a"), "{line}");
    }
}
