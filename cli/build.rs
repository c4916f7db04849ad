//! Builds anew when the fleet repo template gains or loses a file.

fn main() {
    println!("cargo::rerun-if-changed=../fleet-repo-template");
}
