//! sqlite3: a table and its indexes, built, changed and looked through in memory.

use crate::limited::{ALL_THE_TIME, Trial};
use crate::watch::rounds;

#[test]
fn a_table_in_memory_is_whole_and_the_same() {
    if let Some(trial) = Trial::new("a_table_in_memory_is_whole_and_the_same", &["sqlite3"]) {
        tables(&trial);
    }
}

pub(crate) fn tables(trial: &Trial) {
    let rows = rounds(60_000, 1_000_000);
    let script = format!(
        "create table t (id integer primary key, a integer, b text, c blob);
         with recursive n (i) as (select 1 union all select i + 1 from n where i < {rows})
           insert into t select i, (i * 7919) % 1000003, hex(i * 104729) || '-' || i, zeroblob(i % 200) from n;
         create index by_a on t (a);
         create index by_b on t (b);
         update t set b = b || 'x' where id % 7 = 0;
         delete from t where id % 11 = 0;
         pragma integrity_check;
         select count(*), sum(a), sum(length(b)), sum(length(c)), min(b), max(b) from t;
         select a, count(*) from t group by a % 10 order by 1;
         select sum(one.a * other.id) from t one join t other on one.b = other.b where other.id % 5 = 0;
         reindex;
         pragma integrity_check;"
    );
    let kept = trial.place.path("script");
    std::fs::write(&kept, script).unwrap();
    let read = format!(".read {}", trial.place.at("script"));
    trial.same(if rows > 100_000 { "32M" } else { "6M" }, &["sqlite3", ":memory:", &read]);

    let database = trial.place.at("database");
    let built = trial.alone(&["sqlite3", &database, &read]);
    let (again, _) = trial.harried(ALL_THE_TIME, &["sqlite3", &trial.place.at("other"), &read]);
    crate::limited::assert_same(&built, &again);
    let dumps = ["database", "other"].map(|name| trial.alone(&["sqlite3", &trial.place.at(name), ".dump"]));
    crate::limited::assert_same(&dumps[0], &dumps[1]);
    trial.place.assert_clean();
}
