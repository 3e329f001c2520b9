//! Output: data to stdout, words for people to stderr.

use std::{
    borrow::Cow,
    io::{self, IsTerminal, Write},
};

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use crate::failure::{Ended, Failure};

/// What every JSON object says of itself.
pub(crate) const SCHEMA: &str = "bftctl/v1";

/// Writes bytes to stdout, just as they are.
pub(crate) fn bytes(bytes: &[u8]) -> Result<(), Ended> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => Ended::PipeClosed,
        _ => Failure::other("can't write to stdout").cause(error).into(),
    })
}

/// Writes a line to stdout.
pub(crate) fn line(text: &str) -> Result<(), Ended> {
    bytes(format!("{text}\n").as_bytes())
}

/// Writes one JSON object to stdout.
pub(crate) fn json(body: &impl Serialize) -> Result<(), Ended> {
    #[derive(Serialize)]
    struct Document<'a, T> {
        schema: &'static str,
        #[serde(flatten)]
        body: &'a T,
    }
    let text =
        serde_json::to_string(&Document { schema: SCHEMA, body }).expect("our documents have string keys");
    line(&text)
}

/// A table without lines. `numbers` are the columns that are aligned on the right.
pub(crate) fn table(header: &[&str], numbers: &[usize], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).force_no_tty().set_header(header.to_vec()).add_rows(rows);
    let last = header.len().saturating_sub(1);
    for (at, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, if at == last { 0 } else { 2 }));
        if numbers.contains(&at) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.trim_fmt()
}

/// Bytes as text that can't do anything to a terminal: what is not printable is escaped.
pub(crate) fn printable(bytes: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.chars().any(moves_text) => text.into(),
        Ok(text) => {
            let escape = |c: char| if moves_text(c) { c.escape_default().to_string() } else { c.to_string() };
            text.chars().map(escape).collect::<String>().into()
        }
        Err(_) => bytes.escape_ascii().to_string().into(),
    }
}

/// Whether a terminal obeys it, or shows what stands around it elsewhere than it is.
fn moves_text(c: char) -> bool {
    let turns = ['\u{61c}', '\u{200e}', '\u{200f}', '\u{2028}', '\u{2029}'];
    c.is_control()
        || turns.contains(&c)
        || ('\u{202a}'..='\u{202e}').contains(&c)
        || ('\u{2066}'..='\u{2069}').contains(&c)
}

/// Bytes for JSON: as text where they are UTF-8, else in base64.
pub(crate) fn text_or_base64(bytes: &[u8]) -> (Option<&str>, Option<String>) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (Some(text), None),
        Err(_) => (None, Some(data_encoding::BASE64.encode(bytes))),
    }
}

/// Colours, where stdout is a terminal and nobody minds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Paint {
    is_on: bool,
}

impl Paint {
    pub(crate) fn stdout() -> Self {
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { is_on: io::stdout().is_terminal() && !unwanted }
    }

    pub(crate) fn green(self, text: &str) -> String {
        self.with("32", text)
    }

    pub(crate) fn yellow(self, text: &str) -> String {
        self.with("33", text)
    }

    pub(crate) fn red(self, text: &str) -> String {
        self.with("31", text)
    }

    fn with(self, colour: &str, text: &str) -> String {
        if self.is_on { format!("\x1b[{colour}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

#[cfg(test)]
impl Paint {
    pub(crate) const OFF: Self = Self { is_on: false };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_harm_a_terminal_is_escaped() {
        assert_eq!(printable("grüß".as_bytes()), "grüß");
        assert_eq!(printable(b"a\x1b[2Jb\n"), "a\\u{1b}[2Jb\\n");
        assert_eq!(printable(b"\xff\x00"), "\\xff\\x00");
        assert_eq!(printable("1\u{202e}2".as_bytes()), "1\\u{202e}2");
    }

    #[test]
    fn tables_are_aligned_and_have_no_trailing_blanks() {
        let rows = vec![vec!["a".to_owned(), "7".to_owned()], vec!["bcd".to_owned(), "1234".to_owned()]];
        assert_eq!(table(&["NAME", "N"], &[1], rows), "NAME     N\na        7\nbcd   1234");
    }
}
