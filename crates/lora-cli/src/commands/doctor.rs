//! `lora doctor`

use anyhow::Result;
use lora::tch_ext::{self, CudaState};
use tch::{Device, Kind, Tensor};

use super::{emit, say};

/// Say what was found (libtorch, processor, GPU, threads), and what is wrong
#[derive(clap::Args)]
pub(crate) struct Args {
    /// One JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let cuda = tch_ext::load_cuda();
    let folder = tch_ext::libtorch_folder();
    let version = folder.as_ref().and_then(|lib| {
        let file = std::fs::read_to_string(lib.join("../build-version")).ok()?;
        Some(file.trim().to_owned())
    });
    let memory = tch_ext::memory::available().map(|bytes| bytes as f64 / 1e9);
    let (gpu, mut wrong) = match cuda {
        CudaState::Loaded(path) => {
            (format!("{} CUDA device(s), {}", tch::Cuda::device_count(), path.display()), Vec::new())
        }
        CudaState::Absent => ("none: this libtorch is for CPUs only".to_owned(), Vec::new()),
        CudaState::Broken(why) => ("found, but it does not load".to_owned(), vec![format!("CUDA: {why}")]),
    };
    if tch::Cuda::device_count() > 0 {
        let sources = lora::model::CUDA_SOURCES.into_iter().chain(lora::core::CUDA_SOURCES);
        let sources = sources
            .chain(lora::train::CUDA_SOURCES)
            .chain(lora::qlora::CUDA_SOURCES)
            .chain(lora::dora::CUDA_SOURCES);
        let failed = sources.map(|source| source.check(0)).find_map(Result::err);
        wrong.extend(
            failed.map(|why| format!("CUDA kernels do not run, libtorch's operators stand in: {why}")),
        );
    }
    let features = features();
    if !features.contains(&"avx512_bf16") {
        wrong.push(
            "the processor has no bf16 products (avx512_bf16): they are computed in f32, at f32's speed"
                .to_owned(),
        );
    }
    if !works() {
        wrong.push(
            "libtorch multiplies wrongly: its files are damaged; remove .libtorch and set up again".into(),
        );
    }
    if version.as_deref().is_some_and(|v| !v.starts_with("2.11.")) {
        wrong.push(format!(
            "this program is made for libtorch 2.11, not {}",
            version.clone().unwrap_or_default()
        ));
    }
    let shown = |text: Option<String>| text.unwrap_or_else(|| "unknown".to_owned());
    let rows = [
        ("lora", env!("CARGO_PKG_VERSION").to_owned()),
        ("libtorch", shown(version)),
        ("libtorch folder", shown(folder.map(|f| f.display().to_string()))),
        ("processor", features.join(" ")),
        ("threads", tch::get_num_threads().to_string()),
        ("memory free", memory.map_or("unknown".to_owned(), |gb| format!("{gb:.1} GB"))),
        ("gpu", gpu),
    ];
    if args.json {
        let mut object: serde_json::Map<_, _> =
            rows.into_iter().map(|(name, value)| (name.replace(' ', "_"), value.into())).collect();
        object.insert("wrong".into(), wrong.into());
        emit(serde_json::Value::Object(object));
        return Ok(());
    }
    rows.iter().for_each(|(name, value)| say!("{name:16} {value}"));
    match wrong.is_empty() {
        true => say!("\nall is well"),
        false => wrong.iter().for_each(|w| say!("\nwarning: {w}")),
    }
    Ok(())
}

/// One small product, in both dtypes.
fn works() -> bool {
    [Kind::Float, Kind::BFloat16].into_iter().all(|kind| {
        let ones = Tensor::ones([64, 64], (kind, Device::Cpu));
        ones.matmul(&ones).eq(64.0).all().int64_value(&[]) == 1
    })
}

fn features() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    {
        let found = [
            ("avx2", std::is_x86_feature_detected!("avx2")),
            ("fma", std::is_x86_feature_detected!("fma")),
            ("avx512f", std::is_x86_feature_detected!("avx512f")),
            ("avx512_bf16", std::is_x86_feature_detected!("avx512bf16")),
        ];
        found.into_iter().filter(|(_, there)| *there).map(|(name, _)| name).collect()
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        vec![std::env::consts::ARCH]
    }
}
