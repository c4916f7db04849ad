//! What a build cannot do: each test really tries.

use std::{fs, net::TcpListener, time::Duration};

use longshore_fleet::{RenderError, RenderSettings};

use crate::{
    Repo, config_map,
    rendering::{fake, kustomize, render},
};

/// Runs `script` as a build, and returns what it says to stderr.
async fn attempt(script: &str) -> String {
    let programs = Repo::new();
    let repo = Repo::new()
        .write("o/kustomization.yaml", "resources: [map.yaml]\n")
        .write("o/map.yaml", config_map("map"));
    let settings = RenderSettings {
        timeout: Duration::from_secs(10),
        ..RenderSettings::default()
    };
    let renderer = fake(&programs, &format!("cd o\n{script}\nexit 1"), settings).await;
    match render(&renderer, &repo, "o").await.unwrap_err() {
        RenderError::Build { message } => message,
        error => panic!("{error:?}"),
    }
}

#[tokio::test]
async fn reads_its_export_but_nothing_else() {
    let outside = tempfile::tempdir().unwrap();
    let secret = outside.path().join("secret");
    fs::write(&secret, "hunter2").unwrap();
    let secret = secret.display();
    let said = attempt(&format!(
        "exec >&2; cat map.yaml; cat {secret}; cat /etc/passwd; cat ../../../../../{secret}; ls /; ls /proc/self; ls $HOME"
    ))
    .await;
    assert!(said.contains("kind: ConfigMap"), "{said}");
    assert!(
        !said.contains("hunter2") && !said.contains("root:"),
        "{said}"
    );
    assert_eq!(said.matches("Permission denied").count(), 6, "{said}");
}

#[tokio::test]
async fn writes_nothing() {
    let outside = tempfile::tempdir().unwrap();
    let file = outside.path().join("file");
    fs::write(&file, "kept").unwrap();
    let said = attempt(&format!(
        "exec >&2; echo x > new; echo x >> map.yaml; rm map.yaml; mkdir d; ln -s a b; echo x > {0}; rm {0}; \
         echo x > /dev/shm/longshore-test; cat map.yaml",
        file.display()
    ))
    .await;
    assert_eq!(fs::read_to_string(&file).unwrap(), "kept");
    assert!(said.contains("kind: ConfigMap"), "{said}");
    assert_eq!(said.matches("Permission denied").count(), 8, "{said}");
}

#[tokio::test]
async fn connects_nowhere() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    let said = attempt(&format!(
        "exec >&2; (echo hello > /dev/tcp/127.0.0.1/{port}) && echo connected; (echo x > /dev/udp/127.0.0.1/{port}); true"
    ))
    .await;
    assert!(!said.contains("connected"), "{said}");
    assert!(
        said.contains("denied") || said.contains("unreachable"),
        "{said}"
    );
    assert!(listener.accept().is_err());
}

#[tokio::test]
async fn knows_nothing_of_our_environment() {
    let said = attempt("exec >&2; env; cat /proc/$PPID/environ").await;
    let names: Vec<&str> = said
        .lines()
        .filter_map(|line| Some(line.split_once('=')?.0))
        .collect();
    let own = [
        "HOME",
        "PATH",
        "GOMAXPROCS",
        "GOGC",
        "GOMEMLIMIT",
        "PWD",
        "SHLVL",
        "_",
        "OLDPWD",
    ];
    assert!(names.iter().all(|name| own.contains(name)), "{names:?}");
    assert!(said.contains("Permission denied"), "{said}");
}

#[tokio::test]
async fn starts_no_other_program() {
    // Without the scripts' paths nothing but the program itself may run.
    let renderer = kustomize().await;
    assert!(renderer.describe().contains("Landlock"));
    let programs = Repo::new();
    let program = programs.program("kustomize", "#!/bin/sh\necho fake\n");
    let settings = RenderSettings {
        program: Some(program),
        ..RenderSettings::default()
    };
    let error = longshore_fleet::Kustomize::detect(settings)
        .await
        .unwrap_err();
    let reasons: Vec<String> =
        std::iter::successors(Some(&error as &dyn std::error::Error), |error| {
            error.source()
        })
        .map(ToString::to_string)
        .collect();
    assert!(
        reasons
            .iter()
            .any(|reason| reason.contains("Permission denied")),
        "{reasons:?}"
    );
}

#[tokio::test]
async fn leaves_our_own_threads_alone() {
    drop(kustomize().await);
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), "still writable").unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    assert!(std::net::TcpStream::connect(listener.local_addr().unwrap()).is_ok());
}
