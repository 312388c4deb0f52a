//! What holds for every recipe. Each law gives the reason if it is broken.

use tch::{Device, Kind, Tensor};

use super::case::{Case, Toy, noise, relative};
use crate::{Linear, Mode, Recipe, Variant, master_kind};

/// A law: `Err` says how it is broken.
type Law = Result<(), String>;

fn ensure(holds: bool, why: impl FnOnce() -> String) -> Law {
    if holds { Ok(()) } else { Err(why()) }
}

/// Before the first step the output is the base's, exactly.
pub fn attaching_changes_nothing(recipe: &Recipe, _: &[Variant], case: &Case) -> Law {
    let mut layer = case.layer(recipe);
    let x = case.input();
    let before = layer.forward(&x, Mode::Eval);
    case.attach(recipe, &mut layer);
    for mode in [Mode::Train, Mode::Eval] {
        let after = layer.forward(&x, mode);
        let same = after == before || gained(recipe, &layer) && apart(&after, &before, &layer) < 1.0;
        ensure(same, || format!("{mode:?}: output moved by {}", relative(&after, &before)))?;
    }
    Ok(())
}

/// Whether a gain is computed on a device, where the base's sum is rounded before its bias is added, and a gain's is not.
fn gained(recipe: &Recipe, layer: &Linear) -> bool {
    let on_a_device = layer.base().device() != Device::Cpu;
    on_a_device && layer.bias().is_some() && matches!(recipe.footprint(), Ok(Some(made)) if made.gain)
}

/// The distance of two outputs, in roundings of the output and of the sum before its bias.
fn apart(a: &Tensor, b: &Tensor, layer: &Linear) -> f64 {
    let digits = match b.kind() {
        Kind::BFloat16 => 8,
        Kind::Half => 11,
        Kind::Float => 24,
        _ => 53,
    };
    let wide = |t: &Tensor| t.to_kind(Kind::Double);
    let sum = layer.bias().map_or_else(|| wide(b), |bias| wide(b) - wide(bias));
    let size = (sum.norm() + wide(b).norm()).double_value(&[]);
    (wide(a) - wide(b)).norm().double_value(&[]) / (size * 0.5f64.powi(digits))
}

/// Every parameter is a leaf in the master dtype, wants a gradient, and gets a finite one; nothing else does.
pub fn parameters_get_gradients(recipe: &Recipe, _: &[Variant], case: &Case) -> Law {
    let layer = case.trained(recipe);
    let x = case.input().set_requires_grad(true);
    layer.forward(&x, Mode::Train).square().sum(Kind::Double).backward();
    let adapter = layer.adapter().ok_or("no active adapter")?;
    for (name, p) in adapter.params() {
        ensure(p.is_leaf() && p.requires_grad(), || format!("{name} is no trainable leaf"))?;
        ensure(p.kind() == master_kind(case.kind), || format!("{name} is {:?}", p.kind()))?;
        let g = p.grad();
        ensure(g.defined() && crate::all_finite(&g), || format!("{name} has no finite gradient"))?;
        ensure(g.norm().double_value(&[]) > 0.0, || format!("{name} has a gradient of zero"))?;
    }
    ensure(x.grad().defined(), || "the input has no gradient".into())
}

/// `factors` and `row_norms` say what `effective` says, in value and in gradient.
pub fn shortcut_is_the_definition(recipe: &Recipe, _: &[Variant], case: &Case) -> Law {
    let layer = case.trained(recipe);
    let adapter = layer.adapter().ok_or("no active adapter")?;
    let exact = master_kind(case.kind);
    let w = layer.base().dense(exact);
    let run = |y: &Tensor, x: &Tensor| -> Vec<Tensor> {
        let weights = noise(&y.size(), case.seed ^ 4).to_kind(y.kind());
        let leaves: Vec<_> = adapter.params().into_iter().map(|(_, p)| p).chain([x]).collect();
        Tensor::run_backward(&[(y * weights).sum(Kind::Double)], &leaves, false, false)
    };
    let x = case.input().set_requires_grad(true);
    let short = layer.forward(&x, Mode::Train);
    let wide = x.detach().to_kind(exact).set_requires_grad(true);
    let defined = wide.linear(&adapter.effective(&w), layer.bias().map(|b| b.to_kind(exact)));

    let tolerance = case.tolerance();
    let near = |what: &str, a: &Tensor, b: &Tensor| {
        let error = relative(a, b);
        // Where the true value is about zero, only the absolute size can be asked for.
        let tiny = a.norm().double_value(&[]) < tolerance * 1e-2;
        ensure(error < tolerance || tiny, || format!("{what} is off by {error:.1e}"))
    };
    near("the output", &short, &defined)?;
    near(
        "the row norms",
        &adapter.row_norms(layer.base(), &layer.base().bare(case.kind)),
        &definition_norms(&adapter.effective(&w)),
    )?;
    let names = adapter.params().into_iter().map(|(n, _)| n).chain(["the input"]);
    for ((name, a), b) in names.zip(run(&short, &x)).zip(run(&defined, &wide)) {
        near(&format!("the gradient of {name}"), &a, &b)?;
    }
    Ok(())
}

fn definition_norms(w: &Tensor) -> Tensor {
    w.square().sum_dim_intlist([1i64].as_slice(), false, None::<Kind>).sqrt()
}

/// Merging keeps the function and needs no adapter; unmerging gives the very weight back.
pub fn merging_keeps_the_function(recipe: &Recipe, _: &[Variant], case: &Case) -> Law {
    let mut layer = case.trained(recipe);
    let x = case.input();
    let (adapted, weight) = (layer.forward(&x, Mode::Eval), layer.base().dense(case.kind));
    layer.merge().map_err(|e| e.to_string())?;
    ensure(layer.constant().is_some(), || "a merged layer is not constant".into())?;
    let merged = layer.forward(&x, Mode::Eval);
    let error = relative(&merged, &adapted);
    ensure(error < case.tolerance(), || format!("merging moved the output by {error:.1e}"))?;
    layer.unmerge();
    ensure(layer.forward(&x, Mode::Eval) == adapted, || "unmerging did not restore the output".into())?;
    layer.activate(None).map_err(|e| e.to_string())?;
    ensure(layer.effective(case.kind) == weight, || "unmerging did not restore the weight".into())
}

/// What is saved and loaded is the same adapter, bit for bit.
pub fn saving_is_the_identity(recipe: &Recipe, variants: &[Variant], case: &Case) -> Law {
    // Adapter files hold f32; f64 masters exist for these tests alone.
    let case =
        &Case { kind: if case.kind == Kind::Double { Kind::Float } else { case.kind }, ..case.clone() };
    let text = |e: crate::Error| e.to_string();
    let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
    let mut saved = Toy::new(case, recipe);
    crate::attach(&mut saved, "a", recipe, &Toy::config(case)).map_err(text)?;
    saved.scramble(case.seed);
    crate::save(&saved, "a", recipe, &Toy::config(case), variants, folder.path()).map_err(text)?;

    let mut loaded = Toy::new(case, recipe);
    let (read, config) = crate::load(&mut loaded, "b", folder.path(), variants).map_err(text)?;
    ensure(read.flags() == recipe.flags(), || format!("{recipe} came back as {read}"))?;
    ensure(config.lora_alpha == case.alpha && config.r == case.rank, || "rank or alpha changed".into())?;
    let (old, new) = (crate::params(&saved, "a"), crate::params(&loaded, "b"));
    ensure(old.len() == new.len() && !old.is_empty(), || "the number of parameters changed".into())?;
    for (a, b) in old.iter().zip(&new) {
        ensure(a.key() == b.key() && a.tensor == b.tensor, || format!("{} changed", a.key()))?;
    }
    let x = case.input();
    for (a, b) in saved.0.iter().zip(&loaded.0) {
        let same = a.forward(&x, Mode::Eval) == b.forward(&x, Mode::Eval);
        ensure(same, || "the loaded adapter gives another output".into())?;
    }
    Ok(())
}
