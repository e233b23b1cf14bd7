//! Reading settings from TOML so that every problem is reported at once, with its line and its remedy.

use std::fmt::{self, Display};
use std::str::FromStr;
use toml_span::de_helpers::TableHelper;
use toml_span::value::{Value, ValueInner};
use toml_span::{Error as TomlError, ErrorKind, Span};

/// Largest settings file that is read.
pub const SETTINGS_MAX_BYTES: usize = 256 * 1024;

/// One problem in a settings file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Line, from 1.
    pub line: usize,
    /// What is wrong and what to write instead.
    pub text: String,
}

/// All problems of one settings file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems {
    /// What the file is (`plan`, `node configuration`, …).
    pub what: &'static str,
    /// The problems in the order of their lines; never empty.
    pub list: Vec<Problem>,
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let n = self.list.len();
        write!(f, "{} has {n} problem{}:", self.what, if n == 1 { "" } else { "s" })?;
        for p in &self.list {
            write!(f, "\n  line {}: {}", p.line, p.text)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// Parses `text` and hands its top table to `read`; returns what `read` made, or every problem found.
///
/// # Errors
/// Syntax errors, and whatever `read` noted in the [`Table`] or found unread in it.
pub fn parse<T>(
    what: &'static str,
    text: &str,
    read: impl FnOnce(&mut Table<'_>) -> Option<T>,
) -> Result<T, Problems> {
    let problems = |errors: Vec<TomlError>| {
        let mut list: Vec<Problem> = errors.into_iter().flat_map(|e| describe(text, &e)).collect();
        list.sort_by_key(|p| p.line);
        list.dedup();
        Problems { what, list }
    };
    if text.len() > SETTINGS_MAX_BYTES {
        let text =
            format!("the file is larger than {SETTINGS_MAX_BYTES} bytes; is it the right file?");
        return Err(Problems { what, list: vec![Problem { line: 1, text }] });
    }
    let mut root = toml_span::parse(text).map_err(|e| problems(vec![e]))?;
    let mut errors = Vec::new();
    let made = Table::enter(&mut root, &mut errors, read);
    match made {
        Some(made) if errors.is_empty() => Ok(made),
        _ => {
            if errors.is_empty() {
                errors.push(custom(Span::new(0, 0), "a value is missing".to_owned()));
            }
            Err(problems(errors))
        }
    }
}

/// A TOML table being read key by key. Keys that nobody asked for are problems.
pub struct Table<'de> {
    inner: TableHelper<'de>,
    given: Vec<String>,
    span: Span,
}

impl<'de> Table<'de> {
    fn enter<T>(
        value: &mut Value<'de>,
        errors: &mut Vec<TomlError>,
        read: impl FnOnce(&mut Table<'de>) -> Option<T>,
    ) -> Option<T> {
        let span = value.span;
        let inner = match TableHelper::new(value) {
            Ok(inner) => inner,
            Err(e) => {
                errors.extend(e.errors);
                return None;
            }
        };
        let given = inner.table.keys().map(|key| key.name.to_string()).collect();
        let mut table = Table { inner, given, span };
        let made = read(&mut table);
        if let Err(e) = table.inner.finalize(None) {
            errors.extend(e.errors);
            return None;
        }
        made
    }

    /// Whether the file has `key`, be its value usable or not.
    #[must_use]
    pub fn was_given(&self, key: &str) -> bool {
        self.given.iter().any(|k| k == key)
    }

    /// Notes that `key` must be given.
    pub fn missing(&mut self, key: &'static str) {
        self.inner.errors.push((ErrorKind::MissingField(key), self.span).into());
    }

    /// Notes a problem that belongs to no single key.
    pub fn problem(&mut self, text: impl Into<String>) {
        self.inner.errors.push(custom(self.span, text.into()));
    }

    fn take(&mut self, key: &'static str) -> Option<Value<'de>> {
        self.inner.take(key).map(|(_, value)| value)
    }

    fn note(&mut self, span: Span, text: String) {
        self.inner.errors.push(custom(span, text));
    }

    fn wanted(&mut self, wanted: &'static str, key: &str, value: &Value<'de>) {
        let found = value.as_ref().type_str();
        self.note(value.span, format!("`{key}` must be {wanted}, but {found} was found"));
    }

    /// Text under `key`, if it is there.
    pub fn text(&mut self, key: &'static str) -> Option<String> {
        let mut value = self.take(key)?;
        match value.take() {
            ValueInner::String(s) => Some(s.into_owned()),
            other => {
                value.set(other);
                self.wanted("text in quotes", key, &value);
                None
            }
        }
    }

    /// Text under `key`, parsed; what `T` says about bad text becomes the problem.
    pub fn parsed<T: FromStr<Err: Display>>(&mut self, key: &'static str) -> Option<T> {
        let mut value = self.take(key)?;
        match value.take() {
            ValueInner::String(s) => match s.parse() {
                Ok(made) => Some(made),
                Err(e) => {
                    self.note(value.span, format!("`{key}`: {e}"));
                    None
                }
            },
            other => {
                value.set(other);
                self.wanted("text in quotes", key, &value);
                None
            }
        }
    }

    /// True or false under `key`, if it is there.
    pub fn boolean(&mut self, key: &'static str) -> Option<bool> {
        let value = self.take(key)?;
        let found = value.as_bool();
        if found.is_none() {
            self.wanted("true or false", key, &value);
        }
        found
    }

    /// Whole number from `min` to `max` under `key`, if it is there.
    pub fn integer(&mut self, key: &'static str, min: u64, max: u64) -> Option<u64> {
        let value = self.take(key)?;
        let Some(found) = value.as_integer() else {
            self.wanted("a whole number", key, &value);
            return None;
        };
        match u64::try_from(found) {
            Ok(n) if (min..=max).contains(&n) => Some(n),
            _ => {
                let text = format!("`{key}` is {found}, but must lie between {min} and {max}");
                self.note(value.span, text);
                None
            }
        }
    }

    /// As [`Table::integer`], for values that fit 32 bits.
    pub fn integer32(&mut self, key: &'static str, min: u32, max: u32) -> Option<u32> {
        self.integer(key, u64::from(min), u64::from(max)).and_then(|n| u32::try_from(n).ok())
    }

    /// Finite number from `min` to `max` under `key`, if it is there; whole numbers count.
    pub fn number(&mut self, key: &'static str, min: f64, max: f64) -> Option<f64> {
        let value = self.take(key)?;
        #[allow(clippy::cast_precision_loss)]
        let found = value.as_float().or_else(|| value.as_integer().map(|i| i as f64));
        let Some(found) = found else {
            self.wanted("a number", key, &value);
            return None;
        };
        if (min..=max).contains(&found) {
            return Some(found);
        }
        self.note(value.span, format!("`{key}` is {found}, but must lie between {min} and {max}"));
        None
    }

    /// List of texts under `key`, each parsed.
    pub fn parsed_list<T: FromStr<Err: Display>>(&mut self, key: &'static str) -> Option<Vec<T>> {
        let items = self.array(key, "a list of texts, as [\"a\", \"b\"]")?;
        let mut made = Vec::with_capacity(items.len());
        for item in items {
            match item.as_str().map(str::parse::<T>) {
                Some(Ok(value)) => made.push(value),
                Some(Err(e)) => self.note(item.span, format!("`{key}`: {e}")),
                None => self.wanted("a list of texts", key, &item),
            }
        }
        Some(made)
    }

    /// List of whole numbers from `min` to `max` under `key`.
    pub fn integer_list(&mut self, key: &'static str, min: u32, max: u32) -> Option<Vec<u32>> {
        let items = self.array(key, "a list of whole numbers, as [1, 2]")?;
        let mut made = Vec::with_capacity(items.len());
        for item in items {
            match item.as_integer().and_then(|i| u32::try_from(i).ok()) {
                Some(n) if (min..=max).contains(&n) => made.push(n),
                Some(n) => {
                    self.note(
                        item.span,
                        format!("`{key}` holds {n}, but {min} to {max} is allowed"),
                    );
                }
                None => self.wanted("a list of whole numbers", key, &item),
            }
        }
        Some(made)
    }

    /// Reads the table under `key`, if it is there, with `read`.
    pub fn table<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&mut Table<'de>) -> Option<T>,
    ) -> Option<T> {
        let mut value = self.take(key)?;
        Self::enter(&mut value, &mut self.inner.errors, read)
    }

    /// Reads every table of the list under `key` (`[[key]]`) with `read`; those that cannot be used
    /// are left out, their problems noted.
    pub fn tables<T>(
        &mut self,
        key: &'static str,
        mut read: impl FnMut(&mut Table<'de>) -> Option<T>,
    ) -> Option<Vec<T>> {
        let items = self.array(key, "a list of tables, each under its own [[..]]")?;
        let errors = &mut self.inner.errors;
        Some(items.into_iter().filter_map(|mut v| Self::enter(&mut v, errors, &mut read)).collect())
    }

    fn array(&mut self, key: &'static str, wanted: &'static str) -> Option<Vec<Value<'de>>> {
        let mut value = self.take(key)?;
        match value.take() {
            ValueInner::Array(items) => Some(items),
            other => {
                value.set(other);
                self.wanted(wanted, key, &value);
                None
            }
        }
    }
}

fn custom(span: Span, text: String) -> TomlError {
    (ErrorKind::Custom(text.into()), span).into()
}

fn describe(source: &str, error: &TomlError) -> Vec<Problem> {
    let line = |span: Span| {
        source.get(..span.start.min(source.len())).map_or(1, |head| head.matches('\n').count() + 1)
    };
    match &error.kind {
        ErrorKind::Custom(text) => vec![Problem { line: line(error.span), text: text.to_string() }],
        ErrorKind::MissingField(key) => {
            let text = format!("`{key}` is missing; add it");
            vec![Problem { line: line(error.span), text }]
        }
        ErrorKind::UnexpectedKeys { keys, expected } => keys
            .iter()
            .map(|(key, span)| {
                let text = format!("unknown key `{key}`; known here: {}", expected.join(", "));
                Problem { line: line(*span), text }
            })
            .collect(),
        _ => vec![Problem { line: line(error.span), text: error.to_string() }],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_problem_is_reported_with_its_line() {
        let text = "name = 3\nepochs = 0\n\n[inner]\nrate = \"fast\"\nwat = 1\n";
        let problems = parse("plan", text, |t| {
            let name = t.text("name");
            let epochs = t.integer("epochs", 1, 10);
            let rate = t.table("inner", |t| t.number("rate", 0.0, 1.0));
            if t.boolean("fixed").is_none() {
                t.missing("fixed");
            }
            Some((name?, epochs?, rate?))
        })
        .unwrap_err();
        let lines: Vec<usize> = problems.list.iter().map(|p| p.line).collect();
        assert_eq!(lines, [1, 1, 2, 5, 6], "{problems}");
        assert!(problems.to_string().contains("unknown key `wat`; known here: rate"));
        assert!(parse("plan", "a = ", |_| Some(())).unwrap_err().list[0].line == 1);
        assert_eq!(parse("plan", "a = 2", |t| t.number("a", 0.0, 3.0)), Ok(2.0));
    }

    #[test]
    fn every_table_of_a_list_is_read() {
        let read = |text| {
            parse("rules", text, |t| {
                t.tables("rule", |t| {
                    let id = t.integer("id", 1, 9);
                    if id.is_none() && !t.was_given("id") {
                        t.missing("id");
                    }
                    id
                })
            })
        };
        let bad = "[[rule]]\nid = 0\n[[rule]]\nid = 2\n[[rule]]\nwat = 1\n";
        let problems = read(bad).unwrap_err();
        let lines: Vec<usize> = problems.list.iter().map(|p| p.line).collect();
        assert_eq!(lines, [2, 5, 6], "{problems}");
        assert!(read("rule = 3").unwrap_err().to_string().contains("a list of tables"));
        assert_eq!(read("[[rule]]\nid = 1\n[[rule]]\nid = 2\n"), Ok(vec![1, 2]));
    }
}
