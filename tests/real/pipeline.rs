//! A shell and its pipelines: dozens of short-lived programs, forked and executed.

use crate::limited::{NOW_AND_THEN, Trial, assert_same};
use crate::watch::rounds;

#[test]
fn pipelines_end_in_the_same_sums() {
    let Some(trial) = Trial::new("pipelines_end_in_the_same_sums", &["bash", "awk", "sort", "sha256sum"])
    else {
        return;
    };
    let script = format!(
        r#"set -o pipefail
words=$(seq 1 40000)
for round in $(seq {}); do
    echo "$words" | awk -v r=$round '{{ print ($1 * 7919 * r) % 1000003, $1 }}' | sort -n | cut -d' ' -f2 | tr 1-9 2-91 | sha256sum
    (cd / && (sort -R --random-source=/bin/true <<<"$words" | sort -n | md5sum) && exec cat <<<"$(echo "$words" | wc -c)")
    for n in 1 2 3 4 5; do (: "${{words:$n:10}}"; [ "${{#words}}" = 228893 ] || echo wrong) & done; wait
    words=$(echo "$words")
    [ "${{#words}}" = 228893 ] || echo "wrong: ${{#words}}"
    printf '%s\n' "$words" | xargs -n 2000 echo | tee /dev/null | cksum
    sleep 0.03
done 2>&1"#,
        rounds(6, 100)
    );
    let words = ["bash", "-c", &script];
    let alone = trial.alone(&words);
    assert!(alone.status.success(), "{alone:?}");
    let (limited, _) = trial.limited("32M", &words);
    assert_same(&alone, &limited);
    let (harried, _) = trial.harried(NOW_AND_THEN, &words);
    assert_same(&alone, &harried);
    trial.place.assert_clean();
}
