//! What a cache keeps, and texts generated at once: as if each text were alone and read anew.

#[allow(dead_code)]
mod common;

use std::path::Path;
use std::sync::Mutex;

use common::{llama_in, relative};
use lora::Mode;
use lora::model::{Cache, Llama, Model, Piece, Sampling, Texts, generate, generate_all};
use lora::tch_ext::cuda::{here, seed};
use proptest::prelude::*;
use tch::{Kind, Tensor};

/// libtorch's generator is one for the whole process.
static RANDOM: Mutex<()> = Mutex::new(());

/// Grouped heads, a window of 8, heads of 16 with norms.
const FOLDERS: [&str; 3] = ["llama3", "mistral", "qwen3"];

fn model(kind: Kind, folder: &str) -> Llama {
    llama_in(kind, &Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(folder).join("model"))
        .unwrap()
}

fn there(ids: &[i64]) -> Tensor {
    Tensor::from_slice(ids).unsqueeze(0).to_device(here())
}

fn alone(model: &Llama, text: &[i64]) -> Tensor {
    model.hidden(Texts::Rows(&there(text)), None, Mode::Eval).unwrap()
}

fn random_texts(lengths: &[usize]) -> Vec<Vec<i64>> {
    let of = |&n: &usize| {
        let ids = Tensor::randint(96, [n as i64], (Kind::Int64, tch::Device::Cpu));
        Vec::try_from(ids).unwrap()
    };
    lengths.iter().map(of).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Some texts have nothing new in a pass, some are forgotten, some are there twice.
    #[test]
    fn what_goes_on_from_a_cache_is_as_if_read_at_once(
        lengths in prop::collection::vec(1usize..40, 1..6),
        passes in prop::collection::vec((prop::collection::vec(0usize..80, 10), prop::collection::vec(any::<prop::sample::Index>(), 1..6)), 1..4),
        folder in prop::sample::select(&FOLDERS),
        half in any::<bool>(),
    ) {
        let _one = RANDOM.lock();
        let _guard = tch::no_grad_guard();
        seed(3);
        let (kind, tolerance) = if half { (Kind::BFloat16, 3e-2) } else { (Kind::Float, 1e-5) };
        let model = model(kind, folder);
        let (mut cache, mut texts, mut new) = (Cache::new(), vec![vec![]; lengths.len()], lengths);
        for (mut more, kept) in passes {
            let fresh = random_texts(&new);
            let pieces = Piece::texts(&new.iter().map(|&n| n as i64).collect::<Vec<_>>());
            let ids = there(&fresh.concat());
            let got = model.hidden(Texts::Packed(&ids, &pieces), Some(&mut cache), Mode::Eval).unwrap();
            let mut at = 0;
            for (text, fresh) in texts.iter_mut().zip(&fresh) {
                text.extend(fresh);
                let n = fresh.len() as i64;
                if n > 0 {
                    let want = alone(&model, text).narrow(1, text.len() as i64 - n, n);
                    let error = relative(&got.narrow(1, at, n), &want);
                    prop_assert!(error < tolerance, "{folder}, {kind:?}: {error:e} behind {}", text.len() as i64 - n);
                }
                at += n;
            }
            prop_assert_eq!(cache.lengths(), texts.iter().map(|t| t.len() as i64).collect::<Vec<_>>());
            let kept: Vec<usize> = kept.iter().map(|i| i.index(texts.len())).collect();
            cache.keep(&kept);
            texts = kept.iter().map(|&i| texts[i].clone()).collect();
            more.truncate(texts.len());
            // Something is read.
            more[0] = more[0].max(1);
            new = more;
        }
    }
}

/// The likeliest tokens, the whole text read anew for each.
fn defined(model: &Llama, prompt: &[i64], limit: usize, stop: &[i64]) -> Vec<i64> {
    let mut text = prompt.to_vec();
    while text.len() < prompt.len() + limit {
        let last = alone(model, &text).narrow(1, text.len() as i64 - 1, 1);
        let next = model.head().forward(&last, Mode::Eval).argmax(-1, false).int64_value(&[0, 0]);
        if stop.contains(&next) {
            break;
        }
        text.push(next);
    }
    text.split_off(prompt.len())
}

#[test]
fn several_texts_are_what_each_is_alone() {
    let _one = RANDOM.lock();
    let _guard = tch::no_grad_guard();
    seed(5);
    for folder in FOLDERS {
        let model = model(Kind::Float, folder);
        for common in [0, 7, 8, 30] {
            let begin = random_texts(&[common]).swap_remove(0);
            let own = random_texts(&[1, 9, 2, 70, 5]);
            let prompts: Vec<Vec<i64>> = own.into_iter().map(|own| [begin.clone(), own].concat()).collect();
            let limits = [12, 0, 3, 20, 90];
            // Some stop early, others never.
            let free: Vec<_> = prompts.iter().zip(limits).map(|(p, n)| defined(&model, p, n, &[])).collect();
            let stop = [free[3][6], free[4][1]];
            for stop in [&stop[..], &[]] {
                let asked: Vec<_> = prompts.iter().map(|p| &p[..]).zip(limits).collect();
                let got = generate_all(&model, &asked, stop, Sampling::Greedy).unwrap();
                let want: Vec<_> = asked.iter().map(|(p, n)| defined(&model, p, *n, stop)).collect();
                assert_eq!(got, want, "{folder}, {common} tokens in common, stop at {stop:?}");
            }
            let mut heard = Vec::new();
            let text = generate(&model, &prompts[3], 20, &[], Sampling::Greedy, |token| {
                heard.push(token);
                heard.len() < 4
            });
            assert_eq!((text.unwrap(), &heard[..]), (free[3][..4].to_vec(), &free[3][..4]));
        }
        // The same text twice, and a prompt that the others begin with.
        let prompt = random_texts(&[20]).swap_remove(0);
        let asked = [(&prompt[..], 5), (&prompt[..], 9), (&prompt[..12], 5)];
        let got = generate_all(&model, &asked, &[], Sampling::Greedy).unwrap();
        assert_eq!(got, asked.map(|(prompt, limit)| defined(&model, prompt, limit, &[])));
    }
}

/// Of two texts at once each token comes as often as its softmax says; the k and the p likeliest are each text's own.
#[test]
fn several_texts_are_drawn_each_by_its_own_odds() {
    let _one = RANDOM.lock();
    let _guard = tch::no_grad_guard();
    seed(7);
    let model = model(Kind::Float, "llama3");
    let prompts = random_texts(&[3, 8]);
    let odds: Vec<Vec<f64>> = prompts
        .iter()
        .map(|p| {
            let last = alone(&model, p).narrow(1, p.len() as i64 - 1, 1);
            let logits = model.head().forward(&last, Mode::Eval).reshape([-1]);
            Vec::try_from((logits / 0.5).softmax(0, Kind::Double)).unwrap()
        })
        .collect();
    let draws = 1500;
    let asked: Vec<_> = (0..draws).flat_map(|_| prompts.iter().map(|p| (&p[..], 1))).collect();
    for (top_k, top_p) in [(0, 1.0), (3, 1.0), (40, 1.0), (0, 0.4)] {
        let sampling = Sampling::Random { temperature: 0.5, top_k, top_p };
        let got = generate_all(&model, &asked, &[], sampling).unwrap();
        for (text, odds) in odds.iter().enumerate() {
            let mut order: Vec<usize> = (0..odds.len()).collect();
            order.sort_by(|&a, &b| odds[b].total_cmp(&odds[a]));
            let mut sum = 0.0;
            let reached = |&i: &usize| {
                sum += odds[i];
                sum - odds[i] < top_p
            };
            let most = if top_k > 0 { top_k as usize } else { odds.len() };
            let kept: Vec<usize> = order.into_iter().take(most).take_while(reached).collect();
            let whole: f64 = kept.iter().map(|&i| odds[i]).sum();
            for (token, odds) in odds.iter().enumerate() {
                let p = if kept.contains(&token) { odds / whole } else { 0.0 };
                let count = got.iter().skip(text).step_by(2).filter(|t| t[0] == token as i64).count();
                let (mean, spread) = (p * draws as f64, (draws as f64 * p * (1.0 - p)).sqrt());
                let off = (count as f64 - mean).abs();
                assert!(off <= 5.0 * spread, "text {text}, token {token}: {count}, and {mean:.1} are due");
            }
        }
    }
}

/// In f32 such numbers are 0: the temperature divided 0 by it, the sum kept no token.
#[test]
fn numbers_next_to_nothing_take_the_likeliest() {
    let _one = RANDOM.lock();
    let model = model(Kind::Float, "llama3");
    let likeliest = generate(&model, &[5, 6, 7], 8, &[], Sampling::Greedy, |_| true).unwrap();
    for (temperature, top_p) in [(1e-50, 1.0), (1.0, 1e-300), (1e-300, 1e-50), (f64::MIN_POSITIVE, 0.5)] {
        let sampling = Sampling::Random { temperature, top_k: 0, top_p };
        let drawn = generate(&model, &[5, 6, 7], 8, &[], sampling, |_| true).unwrap();
        assert_eq!(drawn, likeliest, "{temperature} {top_p}");
    }
}

#[test]
fn texts_that_do_not_go_on_are_refused() {
    let model = model(Kind::Float, "llama3");
    let _guard = tch::no_grad_guard();
    let ids = there(&[1, 2, 3, 4, 5]);
    let packed = |cache: &mut Cache, pieces: &[Piece]| {
        model.hidden(Texts::Packed(&ids, pieces), Some(cache), Mode::Eval).map(drop)
    };
    let mut cache = Cache::new();
    let two = Piece::texts(&[2, 3]);
    let joined = [Piece { len: 2, behind: None }, Piece { len: 3, behind: Some(0) }];
    assert!(packed(&mut cache, &joined).unwrap_err().to_string().contains("do not go on"));
    packed(&mut cache, &two).unwrap();
    for pieces in [&joined[..], &Piece::texts(&[5]), &Piece::texts(&[1, 2, 2])] {
        packed(&mut cache, pieces).unwrap_err();
    }
    // Rows of unequal pasts.
    let rows = there(&[1, 2]).view([2, 1]);
    model.hidden(Texts::Rows(&rows), Some(&mut cache), Mode::Eval).unwrap_err();
    // A refusal leaves the cache as it was.
    packed(&mut cache, &two).unwrap();
    assert_eq!(cache.lengths(), [4, 6]);
    let long = vec![1; 250];
    let longer = packed(&mut cache, &Piece::texts(&[0, 5]));
    longer.unwrap();
    let too_long =
        model.hidden(Texts::Packed(&there(&long), &Piece::texts(&[0, 250])), Some(&mut cache), Mode::Eval);
    assert!(too_long.unwrap_err().to_string().contains("261 tokens"));

    let empty: &[i64] = &[];
    assert_eq!(generate_all(&model, &[], &[], Sampling::Greedy).unwrap(), Vec::<Vec<i64>>::new());
    let e = generate_all(&model, &[(&long, 3), (empty, 3)], &[], Sampling::Greedy).unwrap_err();
    assert!(e.to_string().contains("no tokens"), "{e}");
    let e = generate_all(&model, &[(&[1; 256], 1)], &[], Sampling::Greedy).unwrap_err();
    assert!(e.to_string().contains("leaves no room"), "{e}");
    // Up to the end of the context, and no further.
    let asked: [(&[i64], usize); 2] = [(&[1; 253], 10), (&[1; 3], 5)];
    let got = generate_all(&model, &asked, &[], Sampling::Greedy).unwrap();
    assert_eq!(got.iter().map(Vec::len).collect::<Vec<_>>(), [3, 5]);
}
