//! The one place that writes: data to stdout, talk to stderr.

use std::io::{self, IsTerminal as _, Write};

use clap::ValueEnum;
use comfy_table::presets::NOTHING;
use serde::Serialize;

use crate::{Error, Exit, terminal::Harmless, text};

/// How data is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Tables and texts, for people.
    #[default]
    Table,
    /// The API's own JSON, for programs.
    Json,
    /// The same as YAML.
    Yaml,
}

/// Where data goes, and how.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    format: Format,
}

impl Output {
    pub(crate) fn new(format: Format) -> Self {
        Self { format }
    }

    pub(crate) fn format(self) -> Format {
        self.format
    }

    /// Writes `data`, for people as `table` says.
    pub(crate) fn show<T: Serialize>(
        self,
        data: &T,
        table: impl FnOnce(&T) -> String,
    ) -> Result<Exit, Error> {
        match self.format {
            Format::Table => write(&table(data)),
            Format::Json => write(&json(data)?),
            Format::Yaml => write(&yaml(data)?),
        }
    }
}

/// Writes a text to stdout as it is, with one line break at its end.
pub(crate) fn write(text: &str) -> Result<Exit, Error> {
    let text = text.trim_end_matches('\n');
    if text.is_empty() {
        return Ok(Exit::Success);
    }
    let mut stdout = io::stdout().lock();
    match writeln!(stdout, "{text}").and_then(|()| stdout.flush()) {
        Ok(()) => Ok(Exit::Success),
        // `longshore devices list | head`: the reader has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Exit::Success),
        Err(error) => Err(Error::internal("writing to stdout failed").because(error)),
    }
}

/// Data that goes to stdout as it comes.
#[derive(Debug)]
pub(crate) struct Stream {
    /// What keeps it from steering a terminal, where there is one.
    filter: Option<Harmless>,
}

impl Stream {
    pub(crate) fn new() -> Self {
        Self {
            filter: io::stdout().is_terminal().then(Harmless::default),
        }
    }

    /// Writes it. Says whether anybody wants more.
    pub(crate) fn write(&mut self, data: &[u8]) -> Result<bool, Error> {
        let filtered = self.filter.as_mut().map(|filter| filter.pass(data));
        let data = filtered.as_deref().unwrap_or(data);
        let mut stdout = io::stdout().lock();
        match stdout.write_all(data).and_then(|()| stdout.flush()) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
            Err(error) => Err(Error::internal("writing to stdout failed").because(error)),
        }
    }
}

/// Says one line to the person at the terminal.
pub(crate) fn say(line: &str) {
    talk(&text::printable(line));
}

/// Says several lines that are printable already. Nobody listening is no error.
pub fn talk(lines: &str) {
    let _unheard = writeln!(io::stderr(), "{lines}");
}

pub(crate) fn json<T: Serialize>(data: &T) -> Result<String, Error> {
    serde_json::to_string_pretty(data)
        .map_err(|error| Error::internal("the answer cannot be written as JSON").because(error))
}

/// Through JSON's values, so that both formats have the same shape and order.
pub(crate) fn yaml<T: Serialize>(data: &T) -> Result<String, Error> {
    let failed = || Error::internal("the answer cannot be written as YAML");
    let value = serde_json::to_value(data).map_err(|error| failed().because(error))?;
    serde_saphyr::to_string(&value).map_err(|error| failed().because(error))
}

/// A table in the style of kubectl: upper-case headers, columns of three spaces between, no borders.
pub(crate) struct Table(comfy_table::Table);

impl Table {
    pub(crate) fn new(header: &[&str]) -> Self {
        let mut table = bare();
        table.set_header(header);
        Self(table)
    }

    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.0
            .add_row(cells.into_iter().map(|cell| text::printable(&cell)));
    }

    pub(crate) fn render(mut self) -> String {
        render(&mut self.0)
    }
}

/// Names and values, one pair a line; pairs without a value are left out.
pub(crate) fn pairs<'a>(pairs: impl IntoIterator<Item = (&'a str, Option<String>)>) -> String {
    let mut table = bare();
    for (name, value) in pairs {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            table.add_row([
                text::printable(&format!("{name}:")),
                text::printable(&value),
            ]);
        }
    }
    render(&mut table)
}

fn bare() -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_style(NOTHING);
    table
}

fn render(table: &mut comfy_table::Table) -> String {
    for column in table.column_iter_mut() {
        column.set_padding((0, 3));
    }
    table.trim_fmt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_look_like_those_of_kubectl() {
        let mut table = Table::new(&["NAME", "AGE"]);
        table.row(["store-0001".into(), "5m".into()]);
        table.row(["a\u{1b}[2J".into(), "3h".into()]);
        assert_eq!(
            table.render(),
            "NAME         AGE\nstore-0001   5m\na\\u{1b}[2J   3h"
        );
    }

    #[test]
    fn pairs_without_values_are_left_out() {
        let text = pairs([
            ("Name", Some("a".into())),
            ("Overlay", None),
            ("State", Some("active".into())),
        ]);
        assert_eq!(text, "Name:    a\nState:   active");
    }

    #[test]
    fn yaml_has_the_shape_of_the_json() {
        let value = serde_json::json!({"items": [{"name": "a", "on": "true", "n": 1}]});
        let again: serde_json::Value = serde_saphyr::from_str(&yaml(&value).unwrap()).unwrap();
        assert_eq!(again, value);
    }
}
