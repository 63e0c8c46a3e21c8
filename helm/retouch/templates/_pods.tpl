{{/* What the pods of both tiers, and of the test, have in common. */}}

{{/* Fields of a pod's spec. Takes (root, component). */}}
{{- define "retouch.pod" -}}
{{- $root := index . 0 -}}
serviceAccountName: {{ include "retouch.serviceAccount" . | quote }}
automountServiceAccountToken: false
# A Service's variables, RETOUCH_GATEWAY_PORT among them, would be taken for settings.
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  {{- with $root.Values.runAsUser }}
  runAsUser: {{ . | int64 }}
  runAsGroup: {{ . | int64 }}
  {{- end }}
  {{- with $root.Values.fsGroup }}
  fsGroup: {{ . | int64 }}
  {{- end }}
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- with $root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | quote }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* Fields of a pod's spec that say where it runs. Takes (root, the tier's values, component) and maybe the entry's name. */}}
{{- define "retouch.placement" -}}
{{- $spec := index . 1 -}}
{{- with $spec.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- with $spec.runtimeClassName }}
runtimeClassName: {{ . | quote }}
{{- end }}
{{- with $spec.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $spec.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- $tolerations := $spec.tolerations -}}
{{- if $spec.gpus -}}
{{- $tolerations = append $tolerations (dict "key" $spec.gpuResource "operator" "Exists" "effect" "NoSchedule") -}}
{{- end }}
{{- with $tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $spec.topologySpread }}
topologySpreadConstraints:
  {{- range . }}
  - topologyKey: {{ .topologyKey | quote }}
    whenUnsatisfiable: {{ .whenUnsatisfiable | default "ScheduleAnyway" }}
    maxSkew: {{ .maxSkew | default 1 }}
    labelSelector:
      matchLabels:
        {{- include "retouch.selector" (concat (list (index $ 0)) (slice $ 2)) | nindent 8 }}
    # Else the pods that a roll replaces would count.
    matchLabelKeys: [pod-template-hash]
  {{- end }}
{{- end }}
{{- end -}}

{{/* Fields of a container. Takes (root, component). */}}
{{- define "retouch.container" -}}
image: {{ include "retouch.image" . | quote }}
imagePullPolicy: {{ (index . 0).Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end -}}

{{/* Where traces go, as variables. */}}
{{- define "retouch.tracing" -}}
{{- with .Values.tracing }}
{{- if .endpoint }}
- name: POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: OTEL_EXPORTER_OTLP_ENDPOINT
  value: {{ .endpoint | quote }}
- name: OTEL_EXPORTER_OTLP_PROTOCOL
  value: grpc
- name: OTEL_RESOURCE_ATTRIBUTES
  value: k8s.namespace.name={{ $.Release.Namespace }},k8s.pod.name=$(POD_NAME)
- name: OTEL_TRACES_SAMPLER
  value: parentbased_traceidratio
- name: OTEL_TRACES_SAMPLER_ARG
  value: {{ include "retouch.text" .ratio | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Keep serving until everyone has heard that the pod goes. Takes (root, seconds). */}}
{{- define "retouch.preStop" -}}
preStop:
  {{- if semverCompare ">=1.30-0" (index . 0).Capabilities.KubeVersion.Version }}
  sleep: {seconds: {{ index . 1 }}}
  {{- else }}
  exec: {command: [sleep, {{ index . 1 | quote }}]}
  {{- end }}
{{- end -}}
