//! `rondo evaluate`.

use crate::args::Evaluate;
use crate::exit::{Exit, Failure};
use crate::output::{Output, Steps};
use crate::render::figures::evaluation_text;
use rondo_imaging::metrics::{self, Options};

pub(crate) fn run(args: Evaluate, output: Output) -> Result<(), Failure> {
    let bad = |e: metrics::Error| Failure::new(Exit::BadInput, e);
    let cases =
        metrics::match_folders(&args.reference, &args.prediction, args.brain_mask.as_deref())
            .map_err(bad)?;
    let options = Options {
        connectivity: args.connectivity,
        tolerance_mm: args.tolerance_mm,
        labels: args.labels,
    };
    let steps = Steps::new("cases judged");
    let evaluation =
        metrics::evaluate(&cases, &options, &|p| steps.at(p.done, p.total, p.item)).map_err(bad)?;
    drop(steps);
    output.give("rondo.evaluate/1", &evaluation, || evaluation_text(&evaluation))
}
