//! The page in a real browser, wide and narrow, light and dark: nothing runs over, nothing is covered, all can be read.
//!
//! Needs a Chromium: `CHROMIUM`, or one in PATH; without any, this test says so and does nothing. With
//! `REPORT_SHOTS=FOLDER` the page and a picture of each view are left in that folder.

use super::sample::{awkward, sample};
use serde::Deserialize;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

/// What browser.js tells.
#[derive(Deserialize)]
struct Found {
    faults: Vec<String>,
    width: u32,
    height: u32,
    dark: bool,
}

fn chromium() -> Option<PathBuf> {
    if let Some(given) = env::var_os("CHROMIUM") {
        return Some(given.into());
    }
    let names =
        ["chromium", "chromium-browser", "google-chrome", "chrome-headless-shell", "chromium-headless-shell"];
    let path = env::var_os("PATH")?;
    env::split_paths(&path).flat_map(|dir| names.map(|name| dir.join(name))).find(|file| file.is_file())
}

/// What it printed: the page after its scripts ran, and what was said in its console.
fn open(browser: &Path, page: &Path, profile: &Path, more: &[OsString]) -> (String, String) {
    let (out, err) = (profile.with_extension("out"), profile.with_extension("err"));
    let mut child = Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr"])
        .arg(format!("--user-data-dir={}", profile.display()))
        .args(more)
        .arg(format!("file://{}", page.display()))
        .stdin(Stdio::null())
        .stdout(fs::File::create(&out).unwrap())
        .stderr(fs::File::create(&err).unwrap())
        .spawn()
        .unwrap();
    let start = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if start.elapsed() > Duration::from_secs(120) {
            child.kill().unwrap();
            panic!("{} did not end: {}", browser.display(), fs::read_to_string(&err).unwrap_or_default());
        }
        thread::sleep(Duration::from_millis(20));
    }
    (fs::read_to_string(out).unwrap(), String::from_utf8_lossy(&fs::read(err).unwrap()).into_owned())
}

#[test]
fn the_page_is_sound_in_a_browser() {
    let Some(browser) = chromium() else {
        eprintln!("skipped: no Chromium (set CHROMIUM to one)");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let shots = env::var_os("REPORT_SHOTS").map(PathBuf::from);
    let mut faults = Vec::new();
    for (name, comparison) in [("sample", sample()), ("awkward", awkward())] {
        let at = folder.path().join(name);
        super::write(&comparison, &at).unwrap();
        let html = fs::read_to_string(at.join("report.html")).unwrap();
        let checked = at.join("checked.html");
        let script = format!("<script>{}</script></body>", include_str!("browser.js"));
        fs::write(&checked, html.replacen("</body>", &script, 1)).unwrap();
        for width in [1280, 390] {
            // As Chromium counts them: 0 is dark.
            for (scheme, dark) in [(1, false), (0, true)] {
                let view = format!("{name}-{width}-{}", if dark { "dark" } else { "light" });
                let size = |height: u32| format!("--window-size={width},{height}").into();
                let colours = OsString::from(format!("--blink-settings=preferredColorScheme={scheme}"));
                let profile = folder.path().join("profile");
                let dump = ["--dump-dom".into(), size(900), colours.clone()];
                let (dom, console) = open(&browser, &checked, &profile, &dump);
                let found =
                    dom.rsplit_once("id=\"found\">").and_then(|(_, rest)| rest.split_once("</script>"));
                let found: Found =
                    serde_json::from_str(found.unwrap_or_else(|| panic!("{console}")).0).unwrap();
                if found.width != width || found.dark != dark {
                    eprintln!("skipped: {view}: this Chromium shows it otherwise");
                    continue;
                }
                faults.extend(found.faults.iter().map(|fault| format!("{view}: {fault}")));
                let said = console.lines().filter(|line| line.contains("CONSOLE"));
                faults.extend(said.map(|line| format!("{view}: {line}")));
                if let Some(shots) = &shots {
                    super::write(&comparison, &shots.join(name)).unwrap();
                    let mut file = OsString::from("--screenshot=");
                    file.push(std::path::absolute(shots).unwrap().join(format!("{view}.png")));
                    open(&browser, &at.join("report.html"), &profile, &[file, size(found.height), colours]);
                }
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
