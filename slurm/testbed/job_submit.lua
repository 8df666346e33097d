-- A site that forbids requeue: JobRequeue=0 alone is a default, which --requeue overrides.
function slurm_job_submit(job, parts, uid)
  job.requeue = 0
  return slurm.SUCCESS
end

function slurm_job_modify(job, record, parts, uid)
  return slurm.SUCCESS
end
