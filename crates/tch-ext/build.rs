//! Compiles the bridge against the libtorch that torch-sys found.

use std::path::Path;

fn main() {
    // The names below are those of GNU's linker and OpenMP; libtorch is there for two architectures.
    let [os, arch] =
        ["CARGO_CFG_TARGET_OS", "CARGO_CFG_TARGET_ARCH"].map(|name| std::env::var(name).expect(name));
    let made_for = os == "linux" && ["x86_64", "aarch64"].contains(&arch.as_str());
    assert!(made_for, "tch-ext is made for Linux, on x86_64 and aarch64, and not for {os} on {arch}");
    println!("cargo:rerun-if-changed=src/bridge.cpp");
    let lib = std::env::var("DEP_TCH_LIBTORCH_LIB").expect("torch-sys tells where libtorch is");
    let include = match std::env::var("LIBTORCH_INCLUDE") {
        Ok(dir) => Path::new(&dir).join("include"),
        Err(_) => Path::new(&lib).join("../include"),
    };
    search_path(Path::new(&lib));
    // libtorch's own: a second copy would bring a second pool of threads. Without OpenMP, loops would be serial.
    let bundled = Path::new(&lib).join("libgomp.so.1").exists();
    println!("cargo:rustc-link-lib=dylib{}", if bundled { ":+verbatim=libgomp.so.1" } else { "=gomp" });
    cc::Build::new()
        .cpp(true)
        .warnings(false)
        .std("c++17")
        .include(&include)
        .include(include.join("torch/csrc/api/include"))
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        .flag("-fopenmp")
        .file("src/bridge.cpp")
        .compile("tch_ext_bridge");
}

/// Cargo runs tests, doc tests too, with the search paths inside its own target folder: this puts libtorch there.
fn search_path(lib: &Path) {
    let link = Path::new(&std::env::var("OUT_DIR").expect("cargo sets OUT_DIR")).join("libtorch");
    let _ = std::fs::remove_file(&link);
    #[cfg(unix)]
    if std::os::unix::fs::symlink(lib, &link).is_ok() {
        println!("cargo:rustc-link-search=native={}", link.display());
    }
}
