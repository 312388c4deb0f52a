//! What a run will take, and which way to run it.

use anyhow::Result;
use lora::model::{Checkpoint, Keep, linear_shapes};
use lora::tch_ext::memory;
use lora::train::{Fit, Load, Planner, Setting, TrainConfig};
use lora::{AdapterConfig, Error, Init, Linear, Mode, Part, Recipe, VARIANTS};
use tch::{Device, Kind, Tensor};

use crate::open::{ADAPTER, ModelArgs};
use crate::settings::MethodArgs;

/// A way to keep the frozen weights.
pub(crate) struct Way {
    /// Its name in tables.
    pub(crate) name: String,
    pub(crate) recipe: Recipe,
    pub(crate) packed: Option<bool>,
    /// It rounds what the file holds, so that something else is learnt.
    rounds: bool,
}

impl Way {
    /// The one that the arguments name.
    pub(crate) fn asked(model: &ModelArgs, method: &MethodArgs) -> Result<Self> {
        let recipe = Recipe::parse(&method.variant, VARIANTS)?;
        let name = match (model.packed(), recipe.storage_name()) {
            (Some(true), _) => "native",
            (_, name) => name.unwrap_or("dense"),
        };
        Ok(Self { name: name.to_owned(), recipe, packed: model.packed(), rounds: false })
    }

    /// As it is loaded where nothing says how: a checkpoint that is packed may want its blocks kept.
    pub(crate) fn resolved(self, checkpoint: &dyn Checkpoint) -> Result<Self> {
        let open = self.packed.is_none() && self.recipe.storage_name().is_none();
        match open && checkpoint.prefers_packed() && is_packed(checkpoint)? {
            true => Ok(Self { name: "native".to_owned(), packed: Some(true), ..self }),
            false => Ok(self),
        }
    }

    /// All that there are where the arguments leave it open: dense, every storage, and the blocks of the file, if it is packed.
    pub(crate) fn all(
        checkpoint: &dyn Checkpoint,
        model: &ModelArgs,
        method: &MethodArgs,
    ) -> Result<Vec<Self>> {
        let asked = Self::asked(model, method)?;
        if asked.recipe.storage_name().is_some() || model.packed().is_some() {
            return Ok(vec![asked]);
        }
        let is_packed = is_packed(checkpoint)?;
        let mut ways = Vec::new();
        for v in VARIANTS.iter().filter(|v| matches!(v.part, Part::Storage(..))) {
            let recipe = Recipe::parse(&format!("{}+{}", v.name, method.variant), VARIANTS)?;
            // What one storage has rounded, another does not round again.
            if recipe.is_dense() || !(is_packed && checkpoint.prefers_packed()) {
                let rounds = !recipe.is_dense();
                ways.push(Self { name: v.name.to_owned(), recipe, packed: Some(false), rounds });
            }
        }
        if is_packed {
            ways.push(Self { name: "native".to_owned(), packed: Some(true), ..asked });
        }
        Ok(ways)
    }

    pub(crate) fn keep<'a>(&'a self, model: &'a ModelArgs) -> Keep<'a> {
        Keep { storage: self.recipe.storage(), packed: self.packed, skip: &model.skip }
    }
}

/// Whether its linear layers come in blocks.
pub(crate) fn is_packed(checkpoint: &dyn Checkpoint) -> Result<bool> {
    let shapes = linear_shapes(checkpoint)?;
    Ok(shapes.iter().any(|(path, _)| checkpoint.packed_bytes(&format!("{path}.weight")).is_some()))
}

/// Planners for `ways`. `program`: bytes in the device's memory already.
pub(crate) fn planners(
    ways: &[Way],
    checkpoint: &dyn Checkpoint,
    model: &ModelArgs,
    config: &AdapterConfig,
    (device, program): (Device, u64),
) -> lora::Result<Vec<Planner>> {
    let planner = |way: &Way| {
        Planner::new(checkpoint, (way.keep(model), model.kind(), device), (&way.recipe, config), program)
    };
    ways.iter().map(planner).collect()
}

/// The setting of `config`, with the way at `planner`.
pub(crate) fn setting(planner: usize, config: &TrainConfig) -> Setting {
    let &TrainConfig { batch_size, accumulate, recompute, .. } = config;
    Setting { planner, recompute, batch_size, accumulate }
}

/// Bytes in use now, without what is free to be given back; a step of a toy has brought the code that every step runs
/// into memory, and the threads that run it; into a GPU's, the buffers of its matrix products.
pub(crate) fn program(kind: Kind, device: Device) -> Result<u64> {
    const WIDTH: i64 = 256;
    let random = |size: &[i64]| Tensor::randn(size, (Kind::Float, device)).to_kind(kind);
    let mut layer = Linear::dense(random(&[WIDTH, WIDTH]), None);
    let adapter = Recipe::default().adapter(layer.base(), 8, 8.0, 0.0, Init::Kaiming)?;
    layer.attach(ADAPTER, adapter)?;
    let head = Linear::dense(random(&[4 * WIDTH, WIDTH]), None);
    let norm = random(&[WIDTH]);
    for _ in 0..2 {
        let x = random(&[1, WIDTH, WIDTH]).set_requires_grad(true);
        let x = lora::project(&[&layer], lora::model::rms_norm(&x, &norm, 1e-6), Mode::Train).swap_remove(0);
        let heads = x.view([1, WIDTH, 4, -1]).transpose(1, 2);
        let x = lora::model::attention(&heads, &heads, &heads, None, None).transpose(1, 2).flatten(2, 3);
        let x = lora::model::swiglu(&x, &x).tensor().view([-1, WIDTH]);
        let labels = Tensor::zeros([WIDTH], (Kind::Int64, device));
        lora::model::cross_entropy(&x, &labels, &head, Mode::Train).0.f_backward().map_err(Error::from)?;
    }
    drop((layer, head));
    memory::trim();
    Ok(memory_on(device).map_or(0, |usage| usage.current))
}

/// Of the process, or what libtorch's allocator has handed out of a GPU's.
pub(crate) fn memory_on(device: Device) -> Option<memory::Usage> {
    match device {
        Device::Cuda(index) => memory::cuda(index),
        _ => memory::process(),
    }
}

/// The bytes that a run may take in all: those given, or what is free beside what this process has already.
pub(crate) fn limit(given: Option<Size>, device: Device, program: u64) -> lora::Result<u64> {
    let found = || match device {
        Device::Cpu => memory::available(),
        Device::Cuda(index) => memory::cuda_available(index),
        _ => None,
    };
    let limit = given.map(|size| size.0).or_else(|| found().map(|free| free + program));
    limit.ok_or_else(|| {
        Error::usage("how much memory there is, is not known here").hint("say it: --memory 8GB")
    })
}

/// The fastest setting within `limit`. Of ways that round the base, one is taken only where no other fits.
pub(crate) fn fastest(ways: &[Way], planners: &[Planner], load: &Load, limit: u64) -> lora::Result<Fit> {
    let exact = Fit::fastest(planners, |planner| !ways[planner].rounds, load, limit);
    exact.or_else(|_| Fit::fastest(planners, |_| true, load, limit)).map_err(|least| {
        let needed = least.map_or_else(String::new, |least| {
            let name = ways.get(least.setting.planner).map_or("", |way| &way.name);
            format!(
                "; the least is {:.2} GB: {name}, {} text(s) in a pass, {} layers recomputed",
                least.plan.total() as f64 / 1e9,
                least.setting.batch_size,
                least.setting.recompute
            )
        });
        Error::usage(format!("nothing fits in {:.2} GB{needed}", limit as f64 / 1e9))
            .hint("shorter texts (--max-length with --truncate), a smaller model, or more memory")
    })
}

/// A plan in a line, with a warning where it will not fit.
pub(crate) fn told(way: &str, fit: &Fit, limit: Option<u64>, blocks: usize) -> String {
    let gb = |bytes: u64| bytes as f64 / 1e9;
    let Setting { recompute, batch_size, accumulate, .. } = fit.setting;
    let total = fit.plan.total();
    let of = limit.map_or_else(String::new, |limit| format!(" of {:.2}", gb(limit)));
    let too_much = if limit.is_some_and(|limit| !fit.plan.fits(limit)) {
        "\n          it may not fit: `lora plan` says what does, and --auto chooses it"
    } else {
        ""
    };
    format!(
        "{:.2}{of} GB: {way} weights, {accumulate} x {batch_size} texts a step, {} of {blocks} layers \
         recomputed{too_much}",
        gb(total),
        recompute.min(blocks)
    )
}

/// A number of bytes: `8GB`, `512mb`, `7.5GiB`, `8e9B`. Without a unit it is none: `8` was meant as something else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size(pub(crate) u64);

impl std::str::FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        const UNITS: [(&str, f64); 9] = [
            ("B", 1.0),
            ("KB", 1e3),
            ("MB", 1e6),
            ("GB", 1e9),
            ("TB", 1e12),
            ("KiB", 1024.0),
            ("MiB", 1_048_576.0),
            ("GiB", 1_073_741_824.0),
            ("TiB", 1_099_511_627_776.0),
        ];
        let text = text.trim();
        let (number, unit) = text.split_at(text.trim_end_matches(|c: char| c.is_ascii_alphabetic()).len());
        let number = number.trim().parse::<f64>().ok();
        if unit.is_empty() && number.is_some() {
            return Err(format!("`{text}` of what? say {text}GB, or {text}B for bytes"));
        }
        let unit = UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit));
        let bytes = number.zip(unit).map(|(number, (_, unit))| number * unit);
        let bytes = bytes.filter(|bytes| (1.0..1e18).contains(bytes));
        bytes
            .map(|bytes| Self(bytes as u64))
            .ok_or_else(|| format!("`{text}` is no size: say 8GB, 512MB or 7.5GiB"))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use clap::Parser;

    use super::*;

    /// What is asked: the way that is chosen within the least memory that one of the ways fits into, by its name, with that many
    /// layers recomputed.
    fn chosen(file: &str, (name, recompute): (&str, usize)) -> (String, u64) {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../lora-model/tests/data").join(file);
        let words = Words::parse_from(["lora", "--model", &file.to_string_lossy()]);
        let checkpoint = lora::model::open(&file).unwrap();
        let ways = Way::all(checkpoint.as_ref(), &words.model, &words.method).unwrap();
        let config = words.method.adapter_config().unwrap();
        let device = (Device::Cpu, 0);
        let planners = planners(&ways, checkpoint.as_ref(), &words.model, &config, device).unwrap();
        let load = Load::even(1, &TrainConfig { batch_size: 1, ..TrainConfig::default() });
        let planner = ways.iter().position(|way| way.name == name).unwrap();
        let setting = Setting { planner, recompute, batch_size: 1, accumulate: 1 };
        let plan = Fit::of(&planners, setting, &load).unwrap().plan;
        let limit = (plan.total()..).find(|limit| plan.fits(*limit)).unwrap();
        let fit = fastest(&ways, &planners, &load, limit).unwrap();
        (ways[fit.setting.planner].name.clone(), limit)
    }

    /// A file's own blocks are not rounded again where they fit, though both ways take the same time.
    #[test]
    fn a_base_is_rounded_only_where_nothing_else_fits() {
        let [(native, least), (_, dense)] = ["qlora", "dense"].map(|way| chosen("k_quants.gguf", (way, 0)));
        assert!(native == "native" && least < dense, "{native}: {least} {dense}");
        let [(rounded, least), (_, native)] = ["qlora", "native"].map(|way| chosen("llama.gguf", (way, 2)));
        assert!(rounded == "qlora" && least < native, "{rounded}: {least} {native}");
    }

    #[derive(clap::Parser)]
    struct Words {
        #[command(flatten)]
        model: ModelArgs,
        #[command(flatten)]
        method: MethodArgs,
    }

    #[test]
    fn sizes_are_read_and_nonsense_is_not() {
        for (text, bytes) in [
            ("8GB", 8_000_000_000),
            ("7.5GiB", 8_053_063_680),
            ("512 MB", 512_000_000),
            ("8gb", 8_000_000_000),
            ("2kb", 2000),
            ("1Mib", 1_048_576),
            ("8e9B", 8_000_000_000),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        for text in ["", "GB", "-1GB", "0GB", "8 apples", "NaN", "inf", "1e30TB", "8 ГБ"] {
            assert!(text.parse::<Size>().unwrap_err().contains("is no size"), "{text}");
        }
        for text in ["8", "0", "8e9", "8000000000"] {
            let said = text.parse::<Size>().unwrap_err();
            assert!(said.contains(&format!("say {text}GB")), "{said}");
        }
    }
}
