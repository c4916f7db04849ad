//! Stands in for kustomize where a test needs one that misbehaves.
//!
//! `build DIR` prints the files of the directory that kustomize would be given as resources, one document each,
//! unless the directory has a file that names a misbehavior: `hang`, `flood`, `eat`, `fail`.

use std::{
    env, fs,
    io::{self, Write as _},
    path::Path,
    process::ExitCode,
    thread,
    time::Duration,
};

fn main() -> ExitCode {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let words: Vec<_> = arguments.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["version"] => say(b"stub-1\n"),
        ["build", directory] => build(Path::new(directory)),
        _ => Err(io::Error::other(format!("unknown arguments {words:?}"))),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn say(bytes: &[u8]) -> io::Result<()> {
    io::stdout().write_all(bytes)
}

fn build(directory: &Path) -> io::Result<()> {
    let is = |name: &str| directory.join(name).exists();
    if is("hang.yaml") {
        loop {
            thread::sleep(Duration::from_mins(1));
        }
    }
    if is("flood.yaml") {
        let line = vec![b'#'; 64 * 1024];
        loop {
            say(&line)?;
        }
    }
    if is("eat.yaml") {
        let mut eaten = Vec::new();
        loop {
            eaten.push(vec![1_u8; 16 * 1024 * 1024]);
        }
    }
    if is("fail.yaml") {
        return Err(io::Error::other("this overlay was told to fail"));
    }
    let mut files: Vec<_> = fs::read_dir(directory)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    files.sort();
    for file in files {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        if name.ends_with(".yaml") && name != "kustomization.yaml" && name != "device.yaml" {
            say(b"---\n")?;
            say(&fs::read(&file)?)?;
        }
    }
    Ok(())
}
