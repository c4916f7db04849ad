//! Our reading of YAML against that of kubectl and kustomize.

use std::{
    io::Write as _,
    process::{Command, Stdio},
};

use longshore_fleet::render::objects;
use proptest::{prelude::*, strategy::ValueTree, test_runner::TestRunner};
use serde_json::{Value, json};

use crate::Repo;

/// What kubectl makes of an object.
fn kubectl(yaml: &str) -> Value {
    let mut child = Command::new("kubectl")
        .args([
            "patch", "--local", "-f", "-", "--type", "merge", "-p", "{}", "-o", "json",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("these tests need kubectl");
    child
        .stdin
        .take()
        .unwrap()
        .write_all(yaml.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(
        output.status.success(),
        "{}\n{yaml}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Numbers as kubectl prints them: it has no integers beyond 64 bits with a sign.
fn same(ours: &Value, theirs: &Value) -> bool {
    match (ours, theirs) {
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b))
        }
        (a, b) => a == b,
    }
}

#[test]
fn scalars() {
    let handmade = "yes No on OFF y Y n N TRUE True ~ null Null NULL 0644 0x1F 0o17 0b11 -0b11 1_000 08 1e3 1.50 .5 5. \
        -.5 +5 1E+2 1_0.5 0x_1 12345678901234567890 123456789012345678901234567890 9223372036854775807 1e21 1e-7 \
        2001-01-01 2001-12-14t21:59:43.10-05:00 2001-1-1 1:30 1.2.3 0x 0xZ 1e . .. - + 1__0 _1 0.1e400 -0 -0.0 +0 \
        0_7 0b2 0o8 -0x10 +0x10 -0o17 1e+ 1.e5 .e5 ._5 1._5 00 0755 -0755 09.5 1e20 9e15 1e15 123456789.0 =  2001-01-01x \
        99-01-01 2001-13-45 2001-01-01T25:00:00Z +12345678901234567890 -12345678901234567890 0xFFFFFFFFFFFFFFFF 1e999";
    let mut scalars: Vec<String> = handmade.split_whitespace().map(str::to_owned).collect();
    let mut runner = TestRunner::deterministic();
    let like_numbers = "[-+]?[0-9_.]{1,6}([eE][-+]?[0-9]{1,2})?|[-+]?0[xob]?[0-9a-f_]{1,6}|[0-9]{1,4}-[0-9]{1,2}-[0-9]{1,2}";
    let words = "[yYnN]|[yY][eE][sS]|[nN][oO]|[oO][nN]|[oO][fF]{2}|[tT][rR][uU][eE]|[nN][uU][lL]{2}|[0-9a-zA-Z.]{1,5}";
    for strategy in [like_numbers, words] {
        let strategy = proptest::string::string_regex(strategy).unwrap();
        scalars.extend((0..400).map(|_| strategy.new_tree(&mut runner).unwrap().current()));
    }
    let mut yaml = "apiVersion: v1\nkind: T\nmetadata: {name: x}\nv:\n".to_owned();
    for scalar in &scalars {
        yaml += &format!("- {scalar}\n");
    }
    let ours = objects(yaml.as_bytes()).unwrap()[0].value();
    let theirs = kubectl(&yaml);
    let pairs = ours["v"]
        .as_array()
        .unwrap()
        .iter()
        .zip(theirs["v"].as_array().unwrap());
    let differing: Vec<_> = scalars
        .iter()
        .zip(pairs)
        .filter(|(_scalar, (ours, theirs))| !same(ours, theirs))
        .collect();
    assert!(differing.is_empty(), "{differing:?}");
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        "[ -~]{0,20}",
        "[a-c \\n\\t:#'\"|>-]{0,24}",
        "\\PC{0,12}",
        "( {0,3}[a-z]{0,3}\\n){0,6}",
        "[a-z]{3} ([a-z]{60,90} ){0,3}[a-z]",
        "[-+]?[0-9_.xobe:]{1,8}|yes|no|null|~|true|=|<<|[*&!%@`][ -~]{0,3}",
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, max_shrink_iters: 60, ..ProptestConfig::default() })]
    /// Whatever strings an object holds: kustomize writes them as YAML, and we read them back.
    #[test]
    fn strings_survive_kustomize(texts in proptest::collection::vec(text(), 40)) {
        let data: serde_json::Map<String, Value> =
            texts.iter().enumerate().map(|(at, text)| (format!("k{at}"), Value::from(text.as_str()))).collect();
        let object = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "stringData": data});
        let repo = Repo::new()
            .write("kustomization.yaml", "resources: [s.json]\n")
            .write("s.json", object.to_string());
        let output = Command::new("kustomize").arg("build").arg(repo.root()).output().expect("these tests need kustomize");
        prop_assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let read = objects(&output.stdout).map_err(|error| TestCaseError::fail(format!("{error}\n{}", String::from_utf8_lossy(&output.stdout))))?;
        prop_assert_eq!(read[0].value(), object, "{}", String::from_utf8_lossy(&output.stdout));
    }
}
