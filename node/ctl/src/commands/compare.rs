//! `rondo compare`.

use crate::args::Compare;
use crate::exit::{Exit, Failure};
use crate::output::Output;
use crate::render::figures::comparison_text;
use rondo_imaging::comparison;
use rondo_imaging::page::visible_text;

pub(crate) fn run(args: &Compare, output: Output) -> Result<(), Failure> {
    let made = comparison::compare(&args.methods)
        .map_err(|e| Failure::new(Exit::BadInput, visible_text(&e.to_string())))?;
    output.give("rondo.compare/1", &made, || comparison_text(&made))
}
