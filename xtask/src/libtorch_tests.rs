use super::*;

/// A made-up pip torch in `DIR/site/torch`, with a CUDA package beside it.
fn fake_torch(dir: &Path, version: &str) -> PathBuf {
    let torch = dir.join("site/torch");
    for folder in ["lib", "include"] {
        fs::create_dir_all(torch.join(folder)).unwrap();
    }
    fs::create_dir_all(dir.join("site/nvidia/cu13/lib")).unwrap();
    fs::write(torch.join("lib").join(CPU_LIB), "cpu").unwrap();
    fs::write(torch.join("lib/notes.txt"), "").unwrap();
    fs::write(dir.join("site/nvidia/cu13/lib/libcudart.so.13"), "rt").unwrap();
    fs::write(torch.join("version.py"), format!("from x import y\n__version__ = '{version}'\ncuda = None\n"))
        .unwrap();
    torch
}

#[test]
fn links_a_torch_of_ones_own_with_its_cuda_libraries() {
    let dir = tempfile::tempdir().unwrap();
    let torch = checked(&fake_torch(dir.path(), "2.11.0+cpu"), "LIBTORCH").unwrap();
    let home = dir.path().join(".libtorch");
    link(&torch, &home).unwrap();
    assert_eq!(fs::read_to_string(home.join("lib").join(CPU_LIB)).unwrap(), "cpu");
    assert_eq!(fs::read_to_string(home.join("lib/libcudart.so.13")).unwrap(), "rt");
    assert!(!home.join("lib/notes.txt").exists());
    assert_eq!(fs::read_to_string(home.join("build-version")).unwrap(), "2.11.0+cpu\n");

    let linked = Source::Linked(torch.clone());
    assert!(!is_complete(&home, &linked), "without its mark a folder is not complete");
    mark(&home, &linked).unwrap();
    assert!(is_complete(&home, &linked));
    assert!(
        is_complete(&home, &Source::Wheels { cuda: false }),
        "links outlive the shell that asked for them"
    );
    assert!(!is_complete(&home, &Source::Linked("/another".into())));
    fs::remove_dir_all(&torch).unwrap();
    assert!(!is_complete(&home, &linked), "dangling links are no libtorch");
}

#[test]
fn a_wrong_or_missing_torch_is_an_error_that_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let fault = |dir: &Path| checked(dir, "LIBTORCH").unwrap_err().to_string();
    // torch-sys takes no other of the series either.
    for other in ["2.9.0", "2.11.1+cpu", "2.11.0a0+git"] {
        let said = fault(&fake_torch(dir.path(), other));
        assert!(said.contains(&format!("which is version {other}; this needs 2.11.0\n")), "{said}");
    }
    let torch = fake_torch(dir.path(), VERSION);
    assert!(checked(&torch, "LIBTORCH").is_ok());
    fs::remove_file(torch.join("version.py")).unwrap();
    assert!(fault(&torch).contains("neither build-version nor version.py"));
    fs::remove_file(torch.join("lib").join(CPU_LIB)).unwrap();
    assert!(fault(&torch).contains("has no lib/libtorch_cpu"));
    assert!(fault(Path::new("/nowhere/at/all")).contains("does not exist"));
}

#[test]
fn a_cuda_folder_serves_a_cpu_run_but_not_the_reverse() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path();
    fs::create_dir_all(home.join("include")).unwrap();
    fs::create_dir_all(home.join("lib")).unwrap();
    fs::write(home.join("lib").join(CPU_LIB), "").unwrap();
    let (cpu, cuda) = (Source::Wheels { cuda: false }, Source::Wheels { cuda: true });
    mark(home, &cuda).unwrap();
    assert!(is_complete(home, &cpu) && is_complete(home, &cuda));
    mark(home, &cpu).unwrap();
    assert!(is_complete(home, &cpu) && !is_complete(home, &cuda));
    fs::write(home.join(MARK), "wheels 2.10.0 cpu 0123456789abcdef").unwrap();
    assert!(!is_complete(home, &cpu), "other wheels than the pinned ones");
}

#[test]
fn files_go_where_the_build_looks_for_them() {
    let torch = |name| place_torch(name, false);
    assert_eq!(torch("torch/lib/libtorch_cpu.so").as_deref(), Some("lib/libtorch_cpu.so"));
    assert_eq!(torch("torch/include/ATen/ATen.h").as_deref(), Some("include/ATen/ATen.h"));
    for absent in
        ["torch/lib/libtorch.so", "torch/lib/libtorch_cuda.so", "torch/__init__.py", "functorch/version.py"]
    {
        assert_eq!(torch(absent), None, "{absent}");
    }
    assert_eq!(place_torch("torch/lib/libc10_cuda.so", true).as_deref(), Some("cuda/lib/libc10_cuda.so"));
    assert_eq!(place_runtime("nvidia/cu13/lib/libcudart.so.13").as_deref(), Some("lib/libcudart.so.13"));
    assert_eq!(place_runtime("nvidia/cu13/lib/libnvperf_host.so"), None);
    assert_eq!(place_cuda("nvidia/cudnn/lib/libcudnn.so.9").as_deref(), Some("cuda/lib/libcudnn.so.9"));
    assert_eq!(place_cuda("nvidia/cudnn/include/cudnn.h"), None);
}
