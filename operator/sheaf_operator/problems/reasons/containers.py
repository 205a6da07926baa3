"""Reasons of images, containers, downloads, and of a model server that ends."""

from __future__ import annotations

from sheaf_operator.problems.reasons.entry import Reason

IMAGES = (
    Reason(
        "ImageNotFound",
        "perhaps",
        "The registry has no such image or tag.",
        "push it, or correct pod.image or the operator's runtimeImage",
        failing=True,
    ),
    Reason(
        "ImagePullDenied",
        "perhaps",
        "The registry gives the image to nobody without the right credentials, or does not have it.",
        "name a pull secret in pod.imagePullSecrets and check its contents and the image's name",
        failing=True,
    ),
    Reason(
        "ImageNameInvalid",
        "never",
        "The image's name cannot be read.",
        "correct pod.image",
        failing=True,
    ),
    Reason(
        "ImageRateLimited",
        "alone",
        "The registry gives no more images for the moment.",
        "it is tried again; a pull secret or a mirror raises the limit",
    ),
    Reason(
        "ImageWrongPlatform",
        "never",
        "The image is made for another processor or operating system than the node's.",
        "build it for the node's platform, or choose nodes with pod.nodeSelector",
        failing=True,
    ),
    Reason(
        "ImagePullFailed",
        "perhaps",
        "The node cannot fetch the image: network, certificate, pull policy or disk.",
        "check the way from the node to the registry",
        failing=True,
    ),
)

CONTAINERS = (
    Reason(
        "ContainerConfigError",
        "perhaps",
        "A Secret, a ConfigMap or a key that the container needs is missing, or its user is refused.",
        "create what the message names, or correct pod.env or the image's user",
        failing=True,
    ),
    Reason(
        "ContainerStartFailed",
        "perhaps",
        "The container runtime cannot start the container.",
        "check the image's entry point, the node's runtime and its devices",
        failing=True,
    ),
    Reason(
        "InitContainerFailed",
        "perhaps",
        "An init container that Sheaf did not make fails, so the model server never starts.",
        "look at its log, and at whoever adds it (a webhook, or pod.initContainers)",
        failing=True,
    ),
    Reason(
        "SidecarFailed",
        "perhaps",
        "A container beside the model server fails, so the pod is not ready.",
        "look at its log, and at whoever adds it (a webhook, or pod.sidecars)",
        failing=True,
    ),
    Reason(
        "NotAnswering",
        "perhaps",
        "A replica that has served answers no more: it hangs, is overloaded, or its node is cut off.",
        "look at its log and its node; delete the pod to have it replaced",
    ),
)

DOWNLOADS = (
    Reason(
        "ModelAccessDenied",
        "never",
        "The model's store refuses the credentials, or there are none (401, 403, a gated repository).",
        "check model.credentialsSecretRef, the token's rights, and that the model's licence was accepted",
        failing=True,
    ),
    Reason(
        "ModelNotFound",
        "never",
        "There is no model at the address.",
        "check spec.model.uri",
        failing=True,
    ),
    Reason(
        "ModelStoreUnreachable",
        "perhaps",
        "The model's store does not answer: DNS, network, certificate, or it is overloaded.",
        "check the name in spec.model.uri and the way out of the cluster; it is tried again",
        failing=True,
    ),
    Reason(
        "DiskFull",
        "perhaps",
        "A disk or volume has no room for what is written to it.",
        "make room on the node, or use a claim that is large enough",
        failing=True,
    ),
    Reason(
        "ModelDownloadFailed",
        "perhaps",
        "The model could not be fetched, for a reason that only the message tells.",
        "see the log of the container storage-initializer",
        failing=True,
    ),
)

CRASHES = (
    Reason(
        "InvalidArguments",
        "never",
        "The runtime refuses its command line.",
        "correct engine and engine.extraArgs",
        failing=True,
    ),
    Reason(
        "ModelUnsupported",
        "never",
        "The runtime cannot serve this model: its architecture, its files or its data type.",
        "choose another model or runtime image, or correct the engine field that the message names",
        failing=True,
    ),
    Reason(
        "ModelNotReadable",
        "never",
        "The model server may not read the model's files: they belong to another user.",
        "give the files to everybody (chmod -R a+rX), or set the pod's fsGroup",
        failing=True,
    ),
    Reason(
        "DriverMissing",
        "perhaps",
        "The container finds no GPU driver library, or one that is too old.",
        "install the node's driver and device plugin, set pod.runtimeClassName (often nvidia), and ask for a"
        " device with accelerator.count",
        failing=True,
    ),
    Reason(
        "DeviceMissing",
        "perhaps",
        "The driver is there and shows no usable device.",
        "check the node's device (nvidia-smi) and accelerator.count",
        failing=True,
    ),
    Reason(
        "DeviceOutOfMemory",
        "perhaps",
        "Weights and KV cache do not fit the device's memory.",
        "lower engine.maxModelLen, quantize, or take larger or more devices",
        failing=True,
    ),
    Reason(
        "OutOfMemory",
        "perhaps",
        "A container used more than its memory limit and was killed.",
        "raise the memory of the container that is named: spec.resources.memory for kserve-container,"
        " storageInitializer.memoryLimit in KServe's ConfigMap inferenceservice-config (or its"
        " ClusterStorageContainer) for storage-initializer, its own resources.memory for one of spec.pod",
        failing=True,
    ),
    Reason(
        "PortInUse",
        "perhaps",
        "Something else in the pod or on the node listens on the same port.",
        "give sidecars other ports than 8000, and do without the host's network",
        failing=True,
    ),
    Reason(
        "ContainerCrashing",
        "perhaps",
        "The model server ends again and again; the message holds its last error line.",
        "see its log (kubectl logs --previous)",
        failing=True,
    ),
)
