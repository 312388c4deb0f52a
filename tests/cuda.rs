//! Every CUDA kernel, compiled for devices that are not here.

use tch::Kind;

/// What the figures are taken on, its predecessor, and its successor.
const ARCHITECTURES: [&str; 3] = ["sm_80", "sm_90", "sm_100"];

#[test]
fn kernels_compile_for_every_architecture() {
    let sources = lora::model::CUDA_SOURCES.into_iter().chain(lora::core::CUDA_SOURCES);
    let sources = sources.chain(tch_ext::CUDA_SOURCES);
    let sources: Vec<_> = sources
        .chain(lora::train::CUDA_SOURCES)
        .chain(lora::qlora::CUDA_SOURCES)
        .chain(lora::dora::CUDA_SOURCES)
        .collect();
    for source in &sources {
        for (kind, vec) in [(Kind::BFloat16, 8), (Kind::BFloat16, 1), (Kind::Float, 4), (Kind::Double, 2)] {
            for arch in ARCHITECTURES {
                match source.compile(kind, vec, arch) {
                    Ok(code) => assert!(code.starts_with(b"\x7fELF"), "{source:?}"),
                    // Fetched by `cargo xtask test`, but not wherever cargo runs.
                    Err(why) if why.contains("--nvrtc") && std::env::var_os("LORA_NVRTC").is_none() => {
                        return eprintln!("not compiled: {why}");
                    }
                    Err(why) => panic!("{why}"),
                }
            }
        }
    }
}

#[test]
fn a_fault_is_told_with_its_line() {
    let source = tch_ext::cuda_source!("broken", "KERNEL f(T* y) { y[0] = nothing; }");
    match source.compile(Kind::Float, 1, "sm_90") {
        Err(why) if why.contains("--nvrtc") => eprintln!("not compiled: {why}"),
        Err(why) => assert!(why.contains("broken") && why.contains("nothing"), "{why}"),
        Ok(_) => panic!("compiled"),
    }
}
