{{/* Parts of a server's pod. `server` is one of "retouch.servers". */}}

{{/* Seconds from being told to go until SIGKILL. Takes the server. */}}
{{- define "retouch.server.grace" -}}
{{- $settings := .settings -}}
{{- add .preStopSeconds (ceil (dig "drainWait" 1 $settings)) (ceil (dig "drainTimeout" 300 $settings)) 10 -}}
{{- end -}}

{{/* Seconds until a roll has failed: not while a pod may still download and load. Takes the server. */}}
{{- define "retouch.server.deadline" -}}
{{- add .startupSeconds 1800 -}}
{{- end -}}

{{/* Takes (root, server). */}}
{{- define "retouch.server.env" -}}
{{- $root := index . 0 -}}
{{- $server := index . 1 -}}
{{- $tls := $root.Values.tls -}}
- {name: RETOUCH_SERVER_HOST, value: {{ $root.Values.listen | quote }}}
- {name: RETOUCH_SERVER_MODELS, value: /etc/retouch/catalog/models.yaml}
- {name: RETOUCH_SERVER_MAX_IMAGE_BYTES, value: {{ include "retouch.text" $root.Values.maxImageBytes | quote }}}
{{- if $tls.serverSecret }}
- {name: RETOUCH_SERVER_TLS_CERT, value: /etc/retouch/tls/tls.crt}
- {name: RETOUCH_SERVER_TLS_KEY, value: /etc/retouch/tls/tls.key}
{{- end }}
{{- if $tls.clientSecret }}
- {name: RETOUCH_SERVER_TLS_CLIENT_CA, value: /etc/retouch/tls/client-ca.crt}
{{- else }}
# Callers are not authenticated here: the NetworkPolicy says who they are.
- {name: RETOUCH_SERVER_ANONYMOUS, value: "true"}
{{- end }}
{{- include "retouch.settings" (list "RETOUCH_SERVER" $server.settings) }}
- {name: HF_HOME, value: /cache}
- {name: HF_HUB_OFFLINE, value: "1"}
{{- $held := list -}}
{{- range $kind := list "limits" "requests" -}}
{{- if dig $kind "cpu" "" $server.resources -}}
{{- $held = append $held (printf "%s.cpu" $kind) -}}
{{- end -}}
{{- end -}}
{{- with $held }}
# torch would start a thread for each core of the node.
- name: OMP_NUM_THREADS
  valueFrom: {resourceFieldRef: {resource: {{ first . }}}}
{{- end }}
{{- include "retouch.tracing" $root }}
{{- with $server.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/*
Alive: the process answers. Ready, and started: models are loaded, and it does not stop. Never by the queue or the GPU.
Kubernetes' gRPC probes cannot speak TLS; then they are by HTTP. Takes (root, server).
*/}}
{{- define "retouch.server.probes" -}}
{{- $ready := "grpc: {port: 50051, service: retouch.v1.ImageEdit}" -}}
{{- $alive := "grpc: {port: 50051}" -}}
{{- if (index . 0).Values.tls.serverSecret -}}
{{- $ready = "httpGet: {path: /readyz, port: metrics}" -}}
{{- $alive = "httpGet: {path: /healthz, port: metrics}" -}}
{{- end -}}
startupProbe:
  {{ $ready }}
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: {{ divf (index . 1).startupSeconds 5 | ceil }}
readinessProbe:
  {{ $ready }}
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: 2
livenessProbe:
  {{ $alive }}
  periodSeconds: 10
  timeoutSeconds: 10
  failureThreshold: 6
{{- end -}}

{{/* Takes the server. */}}
{{- define "retouch.server.resources" -}}
{{- $resources := deepCopy .resources -}}
{{- if .gpus -}}
{{- $limits := merge (dict .gpuResource .gpus) ($resources.limits | default dict) -}}
{{- $_ := set $resources "limits" $limits -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}

{{/* Takes (root, server). */}}
{{- define "retouch.server.volumes" -}}
{{- $root := index . 0 -}}
{{- $server := index . 1 -}}
- name: cache
  {{- if $server.claim }}
  persistentVolumeClaim: {claimName: {{ $server.claim }}, readOnly: {{ $server.cache.readOnly }}}
  {{- else }}
  emptyDir: {sizeLimit: {{ $server.cache.size }}}
  {{- end }}
- name: catalog
  configMap: {name: {{ $server.fullname }}}
- name: tmp
  emptyDir: {sizeLimit: {{ $server.tmpSize }}}
- name: shm
  emptyDir: {medium: Memory, sizeLimit: {{ $server.shmSize }}}
{{- with $root.Values.tls.serverSecret }}
- name: tls
  projected:
    defaultMode: 0440
    sources:
      - secret:
          name: {{ . }}
          items:
            - {key: tls.crt, path: tls.crt}
            - {key: tls.key, path: tls.key}
      {{- with $root.Values.tls.clientSecret }}
      - secret:
          name: {{ . }}
          items:
            - {key: ca.crt, path: client-ca.crt}
      {{- end }}
{{- end }}
{{- with $server.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}
