"""States that are no problem, KServe's and the API server's answers, and whether the model fits."""

from __future__ import annotations

from sheaf_operator.problems.reasons.entry import Reason

STATES = (
    Reason("Serving", "alone", "At least one replica of the present revision answers."),
    Reason("ServingPreviousRevision", "alone", "Replicas of an earlier revision still answer."),
    Reason("Progressing", "alone", "The way to the first answer goes on; the message says how far it is."),
    Reason("RollingOut", "alone", "Replicas of the new revision replace the old ones."),
    Reason("UpToDate", "alone", "Every pod runs the present revision."),
    Reason("Healthy", "alone", "Nothing waits for anybody."),
    Reason("RolloutPaused", "alone", "The spec differs from what runs because `rollout.paused` is true."),
    Reason("Suspended", "alone", "`suspend` is true: nothing runs and nothing is wrong."),
    Reason("Stopping", "alone", "`suspend` is true and the last pods finish their requests."),
    Reason("ScaledToZero", "alone", "The number of replicas is 0."),
    Reason("NotMeasured", "alone", "No replica has loaded the model yet, so its size is unknown."),
    Reason("Measured", "alone", "Weights and a sequence of full length fit the device."),
    Reason("NotStarted", "alone", "The scaler has not decided yet: no replica has been ready."),
    Reason("Disabled", "alone", "`autoscaling.mode` is Disabled."),
    Reason("Advisory", "alone", "The scaler decides and reports, and leaves the count alone."),
    Reason("External", "alone", "Another scaler decides through `/scale`, and Sheaf follows it."),
    Reason("NoExternalCount", "alone", "`spec.replicas` is not set; an HPA needs a first count there."),
    Reason("Scaling", "alone", "The scaler decides on fresh measurements."),
    Reason("MissingSamples", "alone", "A replica does not answer its metrics, so nothing is scaled down."),
    Reason("NoReadyReplica", "alone", "No replica is ready, so there is nothing to measure."),
)

KSERVE = (
    Reason(
        "KServeMissing",
        "never",
        "The cluster has no InferenceService kind.",
        "install KServe, and Sheaf goes on by itself",
    ),
    Reason(
        "KServeRefused",
        "perhaps",
        "KServe does not carry out the InferenceService; the words are its own.",
        "change what the message names; see `kubectl describe inferenceservice`",
        failing=True,
    ),
    Reason(
        "DeploymentOrphaned",
        "perhaps",
        "The Deployment has lost its InferenceService, as after a deletion of that with `--cascade=orphan`."
        " KServe takes it back with the next change of its pods, and not before.",
        "set `rollout.restartedAt` to the present time: KServe takes the Deployment back with that change",
    ),
    Reason(
        "KServeSilent",
        "perhaps",
        "KServe has done nothing about the InferenceService for a while.",
        "check that KServe's controller runs (kubectl get pods -n kserve)",
    ),
    Reason(
        "ProgressDeadlineExceeded",
        "perhaps",
        "The Deployment made no progress for ten minutes, and no pod says why.",
        "see `kubectl describe deployment` and its ReplicaSet",
        failing=True,
    ),
)

WRITES = (
    Reason(
        "Rejected",
        "never",
        "The API server refuses the object that Sheaf makes of the spec.",
        "correct the field that the message names",
    ),
    Reason(
        "OperatorForbidden",
        "never",
        "The operator lacks a right.",
        "install the Role of this release (charts/sheaf or manifests/rbac.yaml)",
    ),
    Reason("ApplyFailed", "alone", "The API server or a webhook did not do its part; it is tried again."),
    Reason(
        "InvalidSpec",
        "never",
        "The operator cannot read the spec: it is of another version than the CRD.",
        "install operator and CRD of the same release, or correct the field",
    ),
    Reason("NameTooLong", "never", "KServe makes a host name of name and namespace, and it is too long."),
    Reason("NameConflict", "never", "An object of this name is there and was not made by Sheaf."),
    Reason(
        "WaitingForDeletion",
        "alone",
        "The objects of an earlier LLMDeployment of this name are being deleted.",
    ),
)

FITS = (
    Reason(
        "WeightsExceedMemory",
        "never",
        "The weights are larger than `accelerator.memory` says the devices are.",
        "correct accelerator.memory or take larger devices",
    ),
    Reason(
        "KVCacheTooSmall",
        "never",
        "Beside the weights there is no room for one sequence of `engine.maxModelLen`.",
        "lower engine.maxModelLen or take larger devices",
    ),
)
