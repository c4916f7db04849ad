//! YAML with line numbers, bounded in depth and in size.
//!
//! Three readers need three readings of a scalar (a strict text, a path, what kubectl would make of it), so
//! nodes keep scalars as written. Aliases are expanded and merge keys merged here, under the same bounds, so
//! that no reader meets them. A key that appears twice is an error.

use std::collections::{HashMap, HashSet};

use saphyr_parser::{Event, Parser, ScalarStyle, Tag};

/// How deep a document may nest; recursive readers rely on it.
const MAX_DEPTH: usize = 100;

/// What a document may cost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Nodes, those that aliases stand for counted each time.
    pub(crate) nodes: usize,
}

/// A node and where it starts.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) line: u32,
    pub(crate) value: Value,
}

#[derive(Clone, Debug)]
pub(crate) enum Value {
    Scalar(Scalar),
    Sequence(Vec<Node>),
    Mapping(Vec<(Node, Node)>),
}

/// A scalar as written.
#[derive(Clone, Debug)]
pub(crate) struct Scalar {
    pub(crate) text: String,
    /// Neither quoted nor a block.
    pub(crate) plain: bool,
    /// The explicit tag, `!!` written out.
    pub(crate) tag: Option<String>,
}

/// Why a text is not YAML, or not within the bounds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct YamlError {
    pub(crate) line: Option<u32>,
    pub(crate) message: String,
}

impl YamlError {
    pub(crate) fn at(line: u32, message: impl Into<String>) -> Self {
        Self {
            line: Some(line),
            message: message.into(),
        }
    }
}

impl Node {
    pub(crate) fn error(&self, message: impl Into<String>) -> YamlError {
        YamlError::at(self.line, message)
    }

    /// The text of a scalar, whatever its style.
    pub(crate) fn scalar(&self) -> Option<&str> {
        match &self.value {
            Value::Scalar(scalar) => Some(&scalar.text),
            Value::Sequence(_) | Value::Mapping(_) => None,
        }
    }

    /// The member `name` of a mapping.
    pub(crate) fn member(&self, name: &str) -> Option<&Node> {
        let Value::Mapping(members) = &self.value else {
            return None;
        };
        members
            .iter()
            .find(|(key, _value)| key.scalar() == Some(name))
            .map(|(_key, value)| value)
    }

    /// The members of a mapping; none of anything else.
    pub(crate) fn members(&self) -> &[(Node, Node)] {
        match &self.value {
            Value::Mapping(members) => members,
            Value::Scalar(_) | Value::Sequence(_) => &[],
        }
    }

    /// Whether it is the empty plain scalar, `null` or `~`.
    pub(crate) fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar(Scalar { text, plain: true, tag: None })
            if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }

    /// What it is, for messages.
    pub(crate) fn what(&self) -> &'static str {
        match &self.value {
            Value::Scalar(_) if self.is_null() => "nothing",
            Value::Scalar(_) => "a single value",
            Value::Sequence(_) => "a list",
            Value::Mapping(_) => "a mapping",
        }
    }
}

/// The documents of `bytes`, empty ones left out.
pub(crate) fn documents(bytes: &[u8], limits: Limits) -> Result<Vec<Node>, YamlError> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let before = bytes.get(..error.valid_up_to()).unwrap_or_default();
        let line = 1 + before.split(|byte| *byte == b'\n').skip(1).count();
        YamlError::at(
            u32::try_from(line).unwrap_or(u32::MAX),
            "the file is not UTF-8",
        )
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut composer = Composer {
        limits,
        nodes: 0,
        anchors: HashMap::new(),
        open: Vec::new(),
    };
    let mut documents = Vec::new();
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| YamlError {
            line: u32::try_from(error.marker().line()).ok(),
            message: format!("not valid YAML: {}", error.info()),
        })?;
        let line = u32::try_from(span.start.line()).unwrap_or(u32::MAX);
        if let Some(document) = composer.event(event, line)? {
            documents.push(document);
        }
    }
    documents.retain(|document| !document.is_null());
    Ok(documents)
}

/// The only document of `bytes`.
pub(crate) fn document(bytes: &[u8], limits: Limits) -> Result<Node, YamlError> {
    let mut documents = documents(bytes, limits)?.into_iter();
    let first = documents.next().ok_or_else(|| YamlError {
        line: None,
        message: "the file is empty".to_owned(),
    })?;
    match documents.next() {
        None => Ok(first),
        Some(second) => Err(second.error("the file has more than one YAML document")),
    }
}

struct Composer {
    limits: Limits,
    nodes: usize,
    anchors: HashMap<usize, Node>,
    open: Vec<Open>,
}

/// A collection that is being read.
struct Open {
    anchor: usize,
    line: u32,
    /// A mapping's key that waits for its value.
    key: Option<Node>,
    value: Value,
}

impl Composer {
    fn event(&mut self, event: Event<'_>, line: u32) -> Result<Option<Node>, YamlError> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let scalar = Scalar {
                    text: text.into_owned(),
                    plain: style == ScalarStyle::Plain,
                    tag: tag.as_deref().map(tag_name),
                };
                self.node(
                    Node {
                        line,
                        value: Value::Scalar(scalar),
                    },
                    anchor,
                )
            }
            Event::SequenceStart(anchor, _tag) => {
                self.start(anchor, line, Value::Sequence(Vec::new()))
            }
            Event::MappingStart(anchor, _tag) => {
                self.start(anchor, line, Value::Mapping(Vec::new()))
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(open) = self.open.pop() else {
                    return Ok(None);
                };
                let mut node = Node {
                    line: open.line,
                    value: open.value,
                };
                if let Value::Mapping(members) = &mut node.value {
                    self.nodes += merge(members)?;
                    self.bound(line)?;
                    unique(members)?;
                }
                self.node(node, open.anchor)
            }
            Event::Alias(anchor) => {
                let node = self.anchors.get(&anchor).ok_or_else(|| {
                    YamlError::at(line, "an alias stands inside the node that it refers to")
                })?;
                let (nodes, depth) = extent(node);
                self.nodes += nodes;
                if self.open.len() + depth > MAX_DEPTH {
                    return Err(too_deep(line));
                }
                let copy = Node {
                    line,
                    value: node.value.clone(),
                };
                self.bound(line)?;
                self.node(copy, 0)
            }
            Event::DocumentEnd => {
                self.anchors.clear();
                Ok(None)
            }
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentStart(_) => {
                Ok(None)
            }
        }
    }

    fn start(&mut self, anchor: usize, line: u32, value: Value) -> Result<Option<Node>, YamlError> {
        if self.open.len() >= MAX_DEPTH {
            return Err(too_deep(line));
        }
        self.open.push(Open {
            anchor,
            line,
            key: None,
            value,
        });
        Ok(None)
    }

    /// Puts a finished node where it belongs; hands it back where it is a whole document.
    fn node(&mut self, node: Node, anchor: usize) -> Result<Option<Node>, YamlError> {
        self.nodes += 1;
        self.bound(node.line)?;
        if anchor != 0 {
            self.nodes += extent(&node).0;
            self.bound(node.line)?;
            self.anchors.insert(anchor, node.clone());
        }
        let Some(open) = self.open.last_mut() else {
            return Ok(Some(node));
        };
        match &mut open.value {
            Value::Sequence(items) => items.push(node),
            Value::Mapping(members) => match open.key.take() {
                Some(key) => members.push((key, node)),
                None => open.key = Some(node),
            },
            Value::Scalar(_) => {}
        }
        Ok(None)
    }

    fn bound(&self, line: u32) -> Result<(), YamlError> {
        if self.nodes > self.limits.nodes {
            let message = format!(
                "more than {} YAML nodes, aliases expanded",
                self.limits.nodes
            );
            return Err(YamlError::at(line, message));
        }
        Ok(())
    }
}

fn too_deep(line: u32) -> YamlError {
    YamlError::at(line, format!("nested more than {MAX_DEPTH} levels deep"))
}

fn tag_name(tag: &Tag) -> String {
    format!("{}{}", tag.handle, tag.suffix)
}

/// How many nodes, and how many levels.
fn extent(node: &Node) -> (usize, usize) {
    let mut nodes = 1;
    let mut depth = 0;
    let children: Vec<&Node> = match &node.value {
        Value::Scalar(_) => return (1, 0),
        Value::Sequence(items) => items.iter().collect(),
        Value::Mapping(members) => members
            .iter()
            .flat_map(|(key, value)| [key, value])
            .collect(),
    };
    for child in children {
        let (below, levels) = extent(child);
        nodes += below;
        depth = depth.max(levels);
    }
    (nodes, depth + 1)
}

/// Replaces `<<` members by the members they stand for, where those are not given; says how many it added.
fn merge(members: &mut Vec<(Node, Node)>) -> Result<usize, YamlError> {
    let is_merge = |key: &Node| matches!(&key.value, Value::Scalar(Scalar { text, plain: true, .. }) if text == "<<");
    if !members.iter().any(|(key, _value)| is_merge(key)) {
        return Ok(0);
    }
    let (merges, mut own): (Vec<_>, Vec<_>) =
        members.drain(..).partition(|(key, _value)| is_merge(key));
    let mut names: HashSet<String> = own
        .iter()
        .filter_map(|(key, _value)| key.scalar().map(str::to_owned))
        .collect();
    let mut added = 0;
    for (_key, value) in merges {
        let line = value.line;
        let sources = match value.value {
            Value::Sequence(items) => items,
            other => vec![Node { line, value: other }],
        };
        for source in sources {
            let Value::Mapping(from) = source.value else {
                return Err(YamlError::at(
                    source.line,
                    "`<<` takes a mapping or a list of mappings",
                ));
            };
            for (key, value) in from {
                if key
                    .scalar()
                    .is_some_and(|name| names.insert(name.to_owned()))
                {
                    added += extent(&value).0;
                    own.push((key, value));
                }
            }
        }
    }
    *members = own;
    Ok(added)
}

fn unique(members: &[(Node, Node)]) -> Result<(), YamlError> {
    let mut seen = HashSet::new();
    for (key, _value) in members {
        if let Some(name) = key.scalar()
            && !seen.insert(name)
        {
            return Err(key.error(format!("`{}` is given twice", name.escape_debug())));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits { nodes: 10_000 };

    fn items(node: &Node) -> &[Node] {
        let Value::Sequence(items) = &node.value else {
            panic!("{node:?}")
        };
        items
    }

    #[test]
    fn keeps_lines_and_styles() {
        let node = document(b"a: 1\nb:\n  - 'x'\n  - !!str 2\n", LIMITS).unwrap();
        let b = node.member("b").unwrap();
        assert_eq!(items(b)[1].line, 4);
        assert!(matches!(
            &items(b)[0].value,
            Value::Scalar(Scalar { plain: false, .. })
        ));
        let Value::Scalar(tagged) = &items(b)[1].value else {
            panic!()
        };
        assert_eq!(tagged.tag.as_deref(), Some("tag:yaml.org,2002:str"));
    }

    #[test]
    fn expands_aliases_and_merges() {
        let text = b"base: &b {x: 1, y: 2}\na: {<<: *b, y: 3}\nc: *b\n";
        let node = document(text, LIMITS).unwrap();
        let a = node.member("a").unwrap();
        assert_eq!(a.member("x").and_then(Node::scalar), Some("1"));
        assert_eq!(a.member("y").and_then(Node::scalar), Some("3"));
        assert_eq!(node.member("c").unwrap().members().len(), 2);
    }

    #[test]
    fn refuses_bombs() {
        let mut bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
        for level in 1..12 {
            let alias = format!("*a{}", level - 1);
            let aliases = [alias.as_str(); 10].join(",");
            writeln!(bomb, "a{level}: &a{level} [{aliases}]").unwrap();
        }
        let error = document(bomb.as_bytes(), LIMITS).unwrap_err();
        assert!(error.message.contains("YAML nodes"), "{error:?}");
        let deep = "[".repeat(5000);
        assert!(document(deep.as_bytes(), LIMITS).is_err());
        let deep = "- ".repeat(200);
        let error = document(deep.as_bytes(), LIMITS).unwrap_err();
        assert!(error.message.contains("levels deep"), "{error:?}");
        let mut chain = "a0: &a0 [x]\n".to_owned();
        for level in 1..200 {
            writeln!(chain, "a{level}: &a{level} [*a{}]", level - 1).unwrap();
        }
        let error = document(chain.as_bytes(), Limits { nodes: 1_000_000 }).unwrap_err();
        assert!(error.message.contains("levels deep"), "{error:?}");
    }

    #[test]
    fn refuses_what_is_given_twice() {
        let error = document(b"a: 1\nb: 2\na: 3\n", LIMITS).unwrap_err();
        assert_eq!(error, YamlError::at(3, "`a` is given twice"));
        assert!(
            document(b"a: 1\n---\nb: 1\n", LIMITS)
                .unwrap_err()
                .message
                .contains("more than one")
        );
        assert_eq!(
            document(b"# nothing\n", LIMITS).unwrap_err().message,
            "the file is empty"
        );
        assert_eq!(
            document(b"a: 1\nb: \xff\n", LIMITS).unwrap_err().line,
            Some(2)
        );
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            drop(documents(&bytes, LIMITS));
        }

        #[test]
        fn never_panics_on_near_yaml(text in "[a-c:{}\\[\\],&*!<>|'\"\n -]{0,80}") {
            drop(documents(text.as_bytes(), LIMITS));
        }
    }
}
