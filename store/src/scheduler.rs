//! What schedulers tell a process: which share of the work is its own, and how many cores it has.

use crate::error::{Result, StoreError};
use crate::worker::Worker;

/// The share given by name, `i/N`, before any scheduler's.
const SHARD: &str = "LAPFLOW_SHARD";
/// Number of workers, for schedulers that tell an index alone.
const WORKERS: &str = "LAPFLOW_WORKERS";

/// Reads an environment variable; a function, so that tests need not change the process's own.
pub type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// A share of the work, and who gave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    /// The share.
    pub worker: Worker,
    /// The flag or the variables it comes from.
    pub origin: &'static str,
}

impl Worker {
    /// Finds this process's share: `flag` (the value of `--shard`), else `LAPFLOW_SHARD`, else
    /// what schedulers say, else all of it.
    ///
    /// | scheduler | index | count |
    /// |---|---|---|
    /// | Slurm array | `SLURM_ARRAY_TASK_ID` from its minimum in its steps | `SLURM_ARRAY_TASK_COUNT` |
    /// | the same with `LAPFLOW_WORKERS` | `SLURM_ARRAY_TASK_ID` | `LAPFLOW_WORKERS` |
    /// | Slurm step (`srun`), within the array's if there is one | `SLURM_PROCID` | `SLURM_STEP_NUM_TASKS` |
    /// | Kubernetes Indexed Job | `JOB_COMPLETION_INDEX` | `LAPFLOW_WORKERS` |
    /// | torchrun and others | `RANK` | `WORLD_SIZE` |
    /// | Open MPI | `OMPI_COMM_WORLD_RANK` | `OMPI_COMM_WORLD_SIZE` |
    ///
    /// A scheduler that started a single process says nothing about a share.
    ///
    /// # Errors
    /// [`StoreError::Config`] where a variable is malformed or lacks its partner, an array has
    /// gaps, the flag contradicts `LAPFLOW_SHARD`, or two schedulers contradict each other.
    pub fn detect(flag: Option<Worker>, lookup: Lookup) -> Result<Assignment> {
        let named = lookup(SHARD).map(|text| text.parse::<Self>()).transpose()?;
        let explicit = [(flag, "--shard"), (named, SHARD)];
        let found = match agree(&explicit)? {
            Some(found) => found,
            // Asked only now: with a share given by name, half an answer does not matter.
            None => scheduled(lookup)?
                .unwrap_or(Assignment { worker: Self::ALONE, origin: "no scheduler" }),
        };
        tracing::info!(worker = %found.worker, origin = found.origin, "share of the work");
        Ok(found)
    }
}

/// Cores this process may use: what its affinity and cgroup leave it, and no more than Slurm
/// promised a task (`SLURM_CPUS_PER_TASK`), since Slurm does not always enforce it.
pub fn cores(lookup: Lookup) -> usize {
    let granted = std::thread::available_parallelism().map_or(1, usize::from);
    let promised = lookup("SLURM_CPUS_PER_TASK").and_then(|text| text.parse().ok());
    promised.map_or(granted, |promised: usize| granted.min(promised.max(1)))
}

/// The share that the schedulers name, those that started a single process left out.
fn scheduled(lookup: Lookup) -> Result<Option<Assignment>> {
    let schedulers = [
        (slurm(lookup)?, "Slurm"),
        (kubernetes(lookup)?, "JOB_COMPLETION_INDEX"),
        (pair(lookup, "RANK", "WORLD_SIZE")?, "RANK"),
        (pair(lookup, "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE")?, "OMPI_COMM_WORLD_RANK"),
    ];
    agree(&schedulers.map(|(worker, origin)| (worker.filter(|worker| worker.count > 1), origin)))
}

/// The share that all of `claims` name, if any does.
fn agree(claims: &[(Option<Worker>, &'static str)]) -> Result<Option<Assignment>> {
    let mut found: Option<Assignment> = None;
    for &(worker, origin) in claims {
        let Some(worker) = worker else { continue };
        match &found {
            None => found = Some(Assignment { worker, origin }),
            Some(first) if first.worker == worker => {}
            Some(first) => {
                return Err(StoreError::Config(format!(
                    "{} says this is worker {}, {origin} says {worker}: say --shard i/N",
                    first.origin, first.worker
                )));
            }
        }
    }
    Ok(found)
}

fn slurm(lookup: Lookup) -> Result<Option<Worker>> {
    let task = slurm_array(lookup)?.unwrap_or(Worker::ALONE);
    // A batch script has SLURM_PROCID too, but only a step has its number of tasks.
    let step = match number(lookup, "SLURM_STEP_NUM_TASKS")? {
        Some(_) => pair(lookup, "SLURM_PROCID", "SLURM_STEP_NUM_TASKS")?.unwrap_or(Worker::ALONE),
        None => Worker::ALONE,
    };
    let index = task.index * step.count + step.index;
    Ok(Some(Worker { index, count: task.count * step.count }))
}

fn slurm_array(lookup: Lookup) -> Result<Option<Worker>> {
    const ID: &str = "SLURM_ARRAY_TASK_ID";
    let Some(id) = number(lookup, ID)? else { return Ok(None) };
    if let Some(count) = number(lookup, WORKERS)? {
        return bounded(ID, id, WORKERS, count).map(Some);
    }
    let need = |name| number(lookup, name)?.ok_or_else(|| lacks(ID, name));
    let (min, max) = (need("SLURM_ARRAY_TASK_MIN")?, need("SLURM_ARRAY_TASK_MAX")?);
    let count = need("SLURM_ARRAY_TASK_COUNT")?;
    let step = number(lookup, "SLURM_ARRAY_TASK_STEP")?.unwrap_or(1).max(1);
    if id < min || (max - min.min(max)) / step + 1 != count {
        return Err(StoreError::Config(format!(
            "the Slurm array from {min} to {max} has {count} tasks and so gaps: \
             set {WORKERS} to the number of workers, of which the array's ids are some"
        )));
    }
    bounded(ID, (id - min) / step, "SLURM_ARRAY_TASK_COUNT", count).map(Some)
}

fn kubernetes(lookup: Lookup) -> Result<Option<Worker>> {
    match lookup("JOB_COMPLETION_INDEX") {
        Some(index) if !index.is_empty() => pair(lookup, "JOB_COMPLETION_INDEX", WORKERS),
        _ => Ok(None),
    }
}

/// A share told by two variables; none of them, or both.
fn pair(lookup: Lookup, index: &'static str, count: &'static str) -> Result<Option<Worker>> {
    match (number(lookup, index)?, number(lookup, count)?) {
        (None, _) => Ok(None),
        (Some(_), None) => Err(lacks(index, count)),
        (Some(position), Some(total)) => bounded(index, position, count, total).map(Some),
    }
}

fn bounded(index_name: &str, index: u64, count_name: &str, count: u64) -> Result<Worker> {
    if index < count {
        return Ok(Worker { index, count });
    }
    Err(StoreError::Config(format!("{index_name} = {index} is not below {count_name} = {count}")))
}

fn number(lookup: Lookup, name: &str) -> Result<Option<u64>> {
    let Some(text) = lookup(name) else { return Ok(None) };
    let parsed = text
        .parse()
        .map_err(|_| StoreError::Config(format!("{name} = '{text}' is not a whole number")));
    parsed.map(Some)
}

fn lacks(index: &str, count: &str) -> StoreError {
    StoreError::Config(format!("{index} is set and {count} is not"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A share and its origin, or the error's sentence.
    type Found = std::result::Result<(String, &'static str), String>;

    fn detect(flag: Option<&str>, variables: &[(&str, &str)]) -> Found {
        let lookup = |name: &str| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_string())
        };
        Worker::detect(flag.map(|flag| flag.parse().unwrap()), &lookup)
            .map(|found| (found.worker.to_string(), found.origin))
            .map_err(|error| error.to_string())
    }

    fn array(
        id: &'static str,
        min: &'static str,
        max: &'static str,
        count: &'static str,
        step: &'static str,
    ) -> Vec<(&'static str, &'static str)> {
        vec![
            ("SLURM_ARRAY_TASK_ID", id),
            ("SLURM_ARRAY_TASK_MIN", min),
            ("SLURM_ARRAY_TASK_MAX", max),
            ("SLURM_ARRAY_TASK_COUNT", count),
            ("SLURM_ARRAY_TASK_STEP", step),
        ]
    }

    fn found(worker: &str, origin: &'static str) -> Found {
        Ok((worker.to_owned(), origin))
    }

    #[test]
    fn each_scheduler_is_understood() {
        assert_eq!(detect(None, &[]), found("0/1", "no scheduler"));
        assert_eq!(detect(None, &[("RANK", "2"), ("WORLD_SIZE", "4")]), found("2/4", "RANK"));
        let mpi = [("OMPI_COMM_WORLD_RANK", "1"), ("OMPI_COMM_WORLD_SIZE", "3")];
        assert_eq!(detect(None, &mpi), found("1/3", "OMPI_COMM_WORLD_RANK"));
        let pod = [("JOB_COMPLETION_INDEX", "5"), (WORKERS, "8")];
        assert_eq!(detect(None, &pod), found("5/8", "JOB_COMPLETION_INDEX"));
        assert_eq!(detect(None, &array("7", "3", "9", "4", "2")), found("2/4", "Slurm"));
        let step = [("SLURM_PROCID", "1"), ("SLURM_STEP_NUM_TASKS", "2")];
        assert_eq!(detect(None, &step), found("1/2", "Slurm"));
        assert_eq!(
            detect(None, &[array("5", "4", "6", "3", "1"), step.to_vec()].concat()),
            found("3/6", "Slurm")
        );
        // A batch script of several tasks is one process until it calls srun.
        assert_eq!(
            detect(None, &[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "2")]),
            found("0/1", "no scheduler")
        );
    }

    #[test]
    fn some_tasks_of_an_array_may_be_repeated() {
        let some = array("7", "3", "7", "2", "1");
        assert!(detect(None, &some).unwrap_err().contains("so gaps: set LAPFLOW_WORKERS"));
        assert_eq!(detect(None, &[some, vec![(WORKERS, "10")]].concat()), found("7/10", "Slurm"));
    }

    #[test]
    fn explicit_shares_come_first_and_must_agree() {
        let rank = ("RANK", "2");
        let variables = [rank, ("WORLD_SIZE", "4"), (SHARD, "1/9")];
        assert_eq!(detect(None, &variables), found("1/9", SHARD));
        assert_eq!(detect(Some("1/9"), &variables), found("1/9", "--shard"));
        let error = detect(Some("1/8"), &variables).unwrap_err();
        assert_eq!(
            error,
            "--shard says this is worker 1/8, LAPFLOW_SHARD says 1/9: say --shard i/N"
        );
    }

    /// As in the examples of deploy/: the index is the scheduler's, the count a variable of ours.
    #[test]
    fn with_an_explicit_share_half_an_answer_of_a_scheduler_does_not_matter() {
        let pod = [("JOB_COMPLETION_INDEX", "5")];
        assert_eq!(detect(Some("5/16"), &pod), found("5/16", "--shard"));
        let repeated = array("7", "3", "7", "2", "1");
        assert_eq!(detect(Some("7/10"), &repeated), found("7/10", "--shard"));
    }

    #[test]
    fn schedulers_must_agree_unless_they_started_a_single_process() {
        let ranks = |world| {
            [array("1", "0", "3", "4", "1"), vec![("RANK", "0"), ("WORLD_SIZE", world)]].concat()
        };
        assert_eq!(detect(None, &ranks("1")), found("1/4", "Slurm"));
        let error = detect(None, &ranks("2")).unwrap_err();
        assert_eq!(error, "Slurm says this is worker 1/4, RANK says 0/2: say --shard i/N");
    }

    #[test]
    fn half_an_answer_is_an_error() {
        assert_eq!(
            detect(None, &[("RANK", "2")]).unwrap_err(),
            "RANK is set and WORLD_SIZE is not"
        );
        let error = detect(None, &[("RANK", "2"), ("WORLD_SIZE", "2")]).unwrap_err();
        assert_eq!(error, "RANK = 2 is not below WORLD_SIZE = 2");
        let error = detect(None, &[("JOB_COMPLETION_INDEX", "2")]).unwrap_err();
        assert_eq!(error, "JOB_COMPLETION_INDEX is set and LAPFLOW_WORKERS is not");
        let error = detect(None, &[("RANK", "two"), ("WORLD_SIZE", "2")]).unwrap_err();
        assert_eq!(error, "RANK = 'two' is not a whole number");
    }

    #[test]
    fn a_promise_of_fewer_cores_is_kept() {
        assert_eq!(cores(&|_| Some("1".to_owned())), 1);
        assert!(cores(&|_| None) >= 1);
    }
}
