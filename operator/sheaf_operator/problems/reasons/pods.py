"""Reasons of pods that are not made, not placed, not given their volumes, or that ended."""

from __future__ import annotations

from sheaf_operator.problems.reasons.entry import Reason

SCHEDULING = (
    Reason(
        "InsufficientGPU",
        "perhaps",
        "No node has as many free devices as a pod asks for.",
        "add a node, free devices, or lower accelerator.count or maxReplicas",
    ),
    Reason(
        "Unschedulable",
        "perhaps",
        "No node fits a pod: too little cpu or memory, taints, or a selector or affinity that matches none.",
        "add a node that fits, or correct resources, pod.nodeSelector, pod.affinity or pod.tolerations",
    ),
    Reason(
        "SchedulingGated",
        "alone",
        "A scheduling gate holds the pod back, as queueing systems such as Kueue set it.",
        "it goes on when whoever set the gate takes it away",
    ),
    Reason(
        "NotScheduled",
        "perhaps",
        "No scheduler has looked at a pod.",
        "check that the scheduler runs and that the pod's schedulerName is right",
    ),
)

VOLUMES = (
    Reason(
        "VolumeNotFound",
        "perhaps",
        "A PersistentVolumeClaim that the pod needs does not exist.",
        "create the claim or correct spec.model.uri",
    ),
    Reason(
        "VolumeNotBound",
        "perhaps",
        "A claim has no volume: no class, no provisioner, or none that fits.",
        "see `kubectl describe pvc`; correct its storageClassName, size or access mode",
    ),
    Reason(
        "VolumeElsewhere",
        "perhaps",
        "The claim's volume lies on a node or in a zone where the pod cannot run.",
        "use a volume that every node reaches (ReadWriteMany), or free the volume's own node",
    ),
    Reason(
        "VolumeInUse",
        "perhaps",
        "A claim that only one node or pod may mount is held by another pod.",
        "use a ReadWriteMany claim, or one replica with rollout.strategy Recreate",
    ),
    Reason(
        "VolumeNotMounted",
        "perhaps",
        "The pod has a node, but a volume cannot be attached or mounted there.",
        "check the volume, its driver and the way to the storage; a ReadWriteOnce claim held by another node"
        " needs ReadWriteMany or rollout.strategy Recreate",
    ),
    Reason(
        "SandboxFailed",
        "perhaps",
        "The node cannot make the pod's network or sandbox.",
        "check the node's network plugin and container runtime",
    ),
    Reason(
        "ContainersNotStarted",
        "perhaps",
        "The pod has a node, and for minutes none of its containers has been started.",
        "see `kubectl describe pod`: its events tell what the node waits for",
    ),
)

REFUSED = (
    Reason(
        "QuotaExceeded",
        "perhaps",
        "A ResourceQuota of the namespace leaves no room for another pod.",
        "raise the quota or lower the resources",
    ),
    Reason(
        "QuotaWantsLimits",
        "never",
        "A ResourceQuota of the namespace counts what a container of the pod does not state.",
        "state it in spec.resources, or give the namespace a LimitRange with defaults",
        failing=True,
    ),
    Reason(
        "LimitRangeViolated",
        "never",
        "A LimitRange of the namespace forbids what the pod asks for.",
        "change the LimitRange or spec.resources",
        failing=True,
    ),
    Reason(
        "PodSecurityViolated",
        "never",
        "The namespace's Pod Security Standard forbids the pod.",
        "change what the message names, or the namespace's pod-security.kubernetes.io/enforce label",
        failing=True,
    ),
    Reason(
        "ServiceAccountNotFound",
        "perhaps",
        "The ServiceAccount of the pod does not exist.",
        "create it or correct pod.serviceAccountName",
        failing=True,
    ),
    Reason(
        "ClassNotFound",
        "perhaps",
        "A PriorityClass or RuntimeClass that the pod names does not exist.",
        "create it or correct pod.priorityClassName or pod.runtimeClassName",
        failing=True,
    ),
    Reason(
        "AdmissionDenied",
        "never",
        "An admission policy of the cluster forbids the pod.",
        "change what the policy names, or ask whoever owns it",
        failing=True,
    ),
    Reason(
        "WebhookUnavailable",
        "perhaps",
        "An admission webhook does not answer, so nothing can be created.",
        "check the webhook's own pods; it is tried again",
    ),
    Reason(
        "PodsRefused",
        "perhaps",
        "The API server creates no pod, for a reason that only its message tells.",
        "change what the message names",
        failing=True,
    ),
)

ENDED = (
    Reason(
        "Evicted",
        "perhaps",
        "The node ended the pod because memory, disk or a volume's limit ran out.",
        "raise the limit that the message names, or make room on the node",
        failing=True,
    ),
    Reason(
        "UnexpectedAdmissionError",
        "perhaps",
        "The node could not give the pod its device: a lost card, or a device plugin that is not up.",
        "check the node's device plugin and cards; drain the node if it goes on",
    ),
    Reason(
        "NodeRefusedPod",
        "perhaps",
        "The node refused a pod that the scheduler had sent there.",
        "check the node's labels, taints and free resources; drain it if it goes on",
    ),
    Reason(
        "NodeShutdown",
        "alone",
        "The node was shut down; the pod is made anew elsewhere.",
        "nothing, unless no other node fits",
    ),
    Reason(
        "NodeLost",
        "alone",
        "The pod's node went away; the pod is made anew elsewhere.",
        "nothing, unless no other node fits",
    ),
    Reason(
        "Preempted",
        "perhaps",
        "A pod of higher priority took the place.",
        "give the model a higher pod.priorityClassName, or add a node",
    ),
    Reason(
        "DeadlineExceeded",
        "never",
        "The pod has an activeDeadlineSeconds, which Sheaf never sets, and it has passed.",
        "find out which webhook or policy adds it",
        failing=True,
    ),
    Reason(
        "PodFailed",
        "perhaps",
        "The pod ended for a reason that only its message tells.",
        "see `kubectl describe pod`",
        failing=True,
    ),
    Reason(
        "PodStuckTerminating",
        "perhaps",
        "A pod is still there long after its grace period: a lost node, a volume or a finalizer.",
        "check its node; if that is gone for good: kubectl delete pod NAME --force",
    ),
)
