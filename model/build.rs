//! Compiles the CUDA kernels to PTX where the feature `cuda` asks for them.

fn main() {
    println!("cargo::rerun-if-changed=src/kernels/cuda");
    #[cfg(feature = "cuda")]
    ptx();
}

#[cfg(feature = "cuda")]
fn ptx() {
    let out = std::env::var("OUT_DIR").expect("cargo sets it");
    let kernels = cudaforge::KernelBuilder::new()
        .source_dir("src/kernels/cuda")
        .arg("-std=c++17")
        .arg("-O3")
        .build_ptx()
        .expect("nvcc compiles the kernels");
    kernels.write(std::path::Path::new(&out).join("ptx.rs")).expect("OUT_DIR is writable");
}
