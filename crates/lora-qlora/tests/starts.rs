//! LoftQ, PiSSA and OLoRA beside a packed weight: what is split adds up again, for every scale.

use lora_core::{AsIs, Start, Started, Storage};
use lora_qlora::Options;
use tch::{Device, Kind, Tensor};

fn weight(out: i64, inp: i64, kind: Kind) -> Tensor {
    tch::manual_seed(out * inp);
    Tensor::randn([out, inp], (Kind::Float, Device::Cpu)).to_kind(kind)
}

fn relative(a: &Tensor, b: &Tensor) -> f64 {
    let (a, b) = (a.to_kind(Kind::Double), b.to_kind(Kind::Double));
    (&a - &b).norm().double_value(&[]) / b.norm().double_value(&[])
}

/// The closed form: the error that is left is that of the singular values beyond the rank.
fn beyond(m: &Tensor, rank: i64) -> f64 {
    let values = m.to_kind(Kind::Double).svd(true, false).1;
    values.narrow(0, rank, values.size()[0] - rank).norm().double_value(&[])
}

#[test]
fn loftq_takes_the_best_of_what_quantising_takes_away_whatever_the_scale() {
    for (out, inp) in [(96, 160), (160, 96), (128, 128)] {
        let w = weight(out, inp, Kind::Float);
        let storage = Options::default();
        let lost = &w - storage.store(w.copy()).unwrap().dense(Kind::Float);
        let best = beyond(&lost, 8) / w.norm().double_value(&[]);
        for scale in [1.0, 2.0, 0.25, -3.0, 16.0] {
            let Started { a, b, residual, error, plain } =
                Start::LoftQ.of(&w, &storage, (8, scale), 1).unwrap();
            assert_eq!(residual, w, "one round quantises the weight itself");
            let whole = storage.store(residual).unwrap().dense(Kind::Float) + b.matmul(&a) * scale;
            assert!((relative(&whole, &w) - error).abs() < 1e-6);
            assert!((error / best - 1.0).abs() < 1e-4, "{error} at scale {scale}, the best is {best}");
            assert!(error < 0.95 * plain, "{error}, {plain} without");
        }
        // More rounds: never worse here, and what is told is what is there.
        let more = Start::LoftQ.of(&w, &storage, (8, 2.0), 5).unwrap();
        let kept = storage.store(more.residual.copy()).unwrap().dense(Kind::Float);
        assert!((relative(&(kept + more.b.matmul(&more.a) * 2.0), &w) - more.error).abs() < 1e-6);
        assert!(more.error < best * 1.001, "{} after five rounds, {best} after one", more.error);
    }
}

#[test]
fn pissa_and_olora_begin_at_the_weight() {
    for start in [Start::Pissa, Start::Olora] {
        for kind in [Kind::Float, Kind::BFloat16] {
            let w = weight(96, 160, kind);
            for scale in [1.0, 2.0, 0.5] {
                let dense = start.of(&w, &AsIs, (8, scale), 1).unwrap();
                let whole = dense.residual.to_kind(Kind::Float) + dense.b.matmul(&dense.a) * scale;
                let most = if kind == Kind::Float { 1e-6 } else { 3e-3 };
                assert!(relative(&whole, &w) < most, "{start}, {kind:?}: {}", relative(&whole, &w));
                let packed = start.of(&w, &Options::default(), (8, scale), 1).unwrap();
                assert!(packed.error < packed.plain * 1.02, "{start}: {} {}", packed.error, packed.plain);
            }
        }
    }
    // The largest singular values lie in the update, and shared between its factors.
    let w = weight(96, 160, Kind::Float);
    let Started { a, b, residual, .. } = Start::Pissa.of(&w, &AsIs, (8, 2.0), 1).unwrap();
    assert!((residual.norm().double_value(&[]) / beyond(&w, 8) - 1.0).abs() < 1e-5);
    assert!(relative(&a.matmul(&a.tr()), &b.tr().matmul(&b)) < 1e-4);
}

#[test]
fn what_makes_no_sense_is_refused() {
    let w = weight(16, 64, Kind::Float);
    let storage = Options::default();
    let refused = |start: Start, storage: &dyn Storage, rank, scale, rounds| {
        start.of(&w, storage, (rank, scale), rounds).unwrap_err().to_string()
    };
    assert!(refused(Start::LoftQ, &AsIs, 4, 1.0, 1).contains("nothing is quantised"));
    assert!(refused(Start::Pissa, &storage, 17, 1.0, 1).contains("do not fit"));
    assert!(refused(Start::Pissa, &storage, 4, 0.0, 1).contains("do not fit"));
    assert!(refused(Start::Olora, &AsIs, 4, 1.0, 2).contains("2 rounds of olora"));
    assert!(refused(Start::LoftQ, &storage, 4, 1.0, 0).contains("0 rounds of loftq"));
    assert!("eva".parse::<Start>().is_err());
    // A weight of lower rank than the update: directions without length stay finite.
    let thin = weight(16, 1, Kind::Float).matmul(&weight(1, 64, Kind::Float));
    let started = Start::Pissa.of(&thin, &AsIs, (4, 1.0), 1).unwrap();
    assert!(lora_core::all_finite(&started.a) && lora_core::all_finite(&started.b) && started.error < 1e-6);
}

/// `tests/data/make_starts.py`. Singular vectors have no sign: products are compared.
#[test]
fn they_are_pefts() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/starts.safetensors");
    let peft = lora_core::read_tensors(std::path::Path::new(file)).unwrap();
    let w = &peft["weight"];
    let product = |name: &str| peft[&format!("{name}.b")].matmul(&peft[&format!("{name}.a")]);
    for start in [Start::Pissa, Start::Olora] {
        let ours = start.of(w, &AsIs, (4, 3.0), 1).unwrap();
        assert!(relative(&ours.b.matmul(&ours.a), &product(&start.to_string())) < 1e-5, "{start}");
        let residual = relative(&ours.residual, &peft[&format!("{start}.residual")]);
        assert!(residual < 1e-5, "{start}: {residual}");
        // How the two factors share the size is PEFT's, too.
        let theirs = peft[&format!("{start}.a")].norm().double_value(&[]);
        assert!((ours.a.norm().double_value(&[]) / theirs - 1.0).abs() < 1e-5, "{start}");
    }
    let storage = Options::parse("single").unwrap();
    for rounds in [1, 3] {
        let ours = Start::LoftQ.of(w, &storage, (4, 1.0), rounds).unwrap();
        let kept = storage.store(ours.residual.copy()).unwrap().dense(Kind::Float);
        // Rounding may fall to the other side where a residual is at a border.
        assert!(relative(&kept, &peft[&format!("loftq{rounds}.base")]) < 1e-4, "{rounds} rounds");
        assert!(
            relative(&ours.b.matmul(&ours.a), &product(&format!("loftq{rounds}"))) < 1e-3,
            "{rounds} rounds"
        );
    }
}
