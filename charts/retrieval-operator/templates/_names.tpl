{{/* The name of the release's objects: the release's own where it says what is in it. */}}
{{- define "retrieval-operator.name" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* What selects the operator's pods: never changes in the life of a release, for a Deployment's selector may not. */}}
{{- define "retrieval-operator.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: control-plane
{{- end -}}

{{/* Labels of every object of the release. */}}
{{- define "retrieval-operator.labels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{/* What a ServiceAccount pulls images with: names, or objects that have one. */}}
{{- define "retrieval-operator.imagePullSecrets" -}}
{{- range .Values.imagePullSecrets }}
- name: {{ if kindIs "string" . }}{{ . }}{{ else }}{{ .name }}{{ end }}
{{- end }}
{{- end -}}

{{/* Where and before whom the pods of the release run. */}}
{{- define "retrieval-operator.placement" -}}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* An image: `list . "trainer" "retrieval-trainer"` is .Values.images.trainer, else its default name and tag. */}}
{{- define "retrieval-operator.image" -}}
{{- $root := index . 0 -}}
{{- $images := $root.Values.images -}}
{{- index $images (index . 1) | default (printf "%s%s:%s" $images.prefix (index . 2) ($images.tag | default $root.Chart.AppVersion)) -}}
{{- end -}}

{{/* What PodSecurity "restricted" asks of a pod, and of a container. */}}
{{- define "retrieval-operator.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "retrieval-operator.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop:
    - ALL
{{- end -}}

{{/* The operator's settings: operator/retrieval_operator/settings.py, each a variable of its name. */}}
{{- define "retrieval-operator.environment" -}}
{{- $images := dict
  "trainer" (include "retrieval-operator.image" (list . "trainer" "retrieval-trainer"))
  "indexer" (include "retrieval-operator.image" (list . "indexer" "retrieval-indexer"))
  "encoderServer" (include "retrieval-operator.image" (list . "encoderServer" "retrieval-encoder-server"))
  "data" (include "retrieval-operator.image" (list . "data" "retrieval-indexer")) -}}
{{- $connections := dict -}}
{{- range $name, $connection := .Values.mlflow.connections -}}
{{- $settings := dict "uri" $connection.uri -}}
{{- with $connection.publicUri }}{{ $settings = set $settings "publicUri" . }}{{ end -}}
{{- with $connection.podSecret }}{{ $settings = set $settings "podSecret" . }}{{ end -}}
{{- if $connection.credentialsSecret }}{{ $settings = set $settings "credentials" (printf "/etc/mlflow/%s" $name) }}{{ end -}}
{{- if $connection.caConfigMap }}{{ $settings = set $settings "caFile" (printf "/etc/mlflow-ca/%s/ca.crt" $name) }}{{ end -}}
{{- $connections = set $connections $name $settings -}}
{{- end -}}
- name: RETRIEVAL_OPERATOR_CLUSTER
  value: {{ .Values.clusterName | quote }}
- name: RETRIEVAL_OPERATOR_NAMESPACES
  value: {{ .Values.watch.namespaces | toJson | quote }}
- name: RETRIEVAL_OPERATOR_IMAGES
  value: {{ $images | toJson | quote }}
- name: RETRIEVAL_OPERATOR_CONNECTIONS
  value: {{ $connections | toJson | quote }}
- name: RETRIEVAL_OPERATOR_WORKERS
  value: {{ .Values.workers | quote }}
- name: RETRIEVAL_OPERATOR_REGISTRY_POLL_SECONDS
  value: {{ .Values.registryPollSeconds | quote }}
- name: RETRIEVAL_OPERATOR_METRICS_PORT
  value: {{ ternary "9090" "0" .Values.metrics.enabled | quote }}
- name: RETRIEVAL_OPERATOR_LOG_FORMAT
  value: json
- name: RETRIEVAL_OPERATOR_LOG_LEVEL
  value: {{ .Values.logLevel }}
{{- end -}}

{{/* Credentials and certificates of MLflow connections, mounted as connection.py reads them. */}}
{{- define "retrieval-operator.connectionMounts" -}}
{{- range $name, $connection := .Values.mlflow.connections }}
{{- if $connection.credentialsSecret }}
- name: mlflow-{{ $name }}
  mountPath: /etc/mlflow/{{ $name }}
  readOnly: true
{{- end }}
{{- if $connection.caConfigMap }}
- name: mlflow-ca-{{ $name }}
  mountPath: /etc/mlflow-ca/{{ $name }}
  readOnly: true
{{- end }}
{{- end }}
{{- end -}}

{{- define "retrieval-operator.connectionVolumes" -}}
{{- range $name, $connection := .Values.mlflow.connections }}
{{- if $connection.credentialsSecret }}
- name: mlflow-{{ $name }}
  secret:
    secretName: {{ $connection.credentialsSecret }}
    defaultMode: 0440
{{- end }}
{{- if $connection.caConfigMap }}
- name: mlflow-ca-{{ $name }}
  configMap:
    name: {{ $connection.caConfigMap }}
{{- end }}
{{- end }}
{{- end -}}
