//! Deployments: partitioner, filter and task runtimes.
